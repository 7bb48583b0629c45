"""What all nodes must compute alike: how a change alters the tree, guests, modes, locks, indexes.

Pure: no clock, thread, file or socket, so the same input gives the same tree on every node.
"""
