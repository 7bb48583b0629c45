"""The edge to the kernel: requests in, replies and cache invalidations out.

Only this folder imports llfuse. It decides about fixed entries and unsupported requests; all rules
for entries of the tree are in ``vfs``.
"""
