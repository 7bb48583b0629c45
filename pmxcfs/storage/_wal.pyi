VFS: str  # the name of the SQLite VFS that collects the writes of a transaction
