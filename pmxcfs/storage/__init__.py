"""What is on disk: the SQLite database, its repair, and the copies kept of conflicting changes.

The only folder that knows SQLite. Knows nothing of clusters, requests or the mount.
"""
