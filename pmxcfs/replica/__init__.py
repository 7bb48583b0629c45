"""How a change takes effect: applied, saved and announced, in local mode or in a cluster.

Imports nothing of FUSE or corosync; ``cluster`` and ``vfs`` call it.
"""
