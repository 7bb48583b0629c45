"""The edge to local clients over libqb: the server, its requests, and a client for our commands.

Knows nothing of FUSE or corosync.
"""
