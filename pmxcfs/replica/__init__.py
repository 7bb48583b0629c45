"""How a change becomes fact: applied, stored and announced, on this node alone or in a cluster.

Knows neither FUSE nor corosync; ``cluster`` and ``vfs`` call it.
"""
