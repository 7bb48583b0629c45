"""The commands: parsing, the offline tools on a database, questions to a running daemon."""
