"""The edge to local clients over libqb: the server, its requests, and the client of the commands.

Imports nothing of FUSE or corosync.
"""
