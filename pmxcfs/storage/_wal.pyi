VFS: str  # the name of SQLite's VFS that collects a transaction's writes
