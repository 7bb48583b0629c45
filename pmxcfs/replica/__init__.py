"""How a change takes effect: applied, saved and announced, in local mode or in a cluster.

Knows neither FUSE nor corosync; ``cluster`` and ``vfs`` call it.
"""
