"""What is on disk: the SQLite database, its repair, and the copies kept of conflicting changes.

Only this folder uses SQLite. It imports nothing of corosync, requests or the mount.
"""
