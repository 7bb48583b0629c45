"""The deterministic rules of the tree: applying changes, guests, modes, locks, index, adoption.

Pure: no clock, thread, file or socket, so that the same input gives the same tree on every node.
"""
