"""The edge to local clients over libqb: the server, its requests, and the client of the commands.

Knows nothing of FUSE or corosync.
"""
