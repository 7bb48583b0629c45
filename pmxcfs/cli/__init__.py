"""The command line: parsing, the offline tools for a database, the queries of a running daemon."""
