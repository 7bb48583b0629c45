"""The edge to the kernel: requests in, replies and cache invalidations out.

Only this folder imports llfuse. It decides nothing: the rules are in ``vfs``.
"""
