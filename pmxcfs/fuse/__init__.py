"""The edge to the kernel: requests in, replies and cache invalidations out.

The only folder that knows llfuse. Decides nothing: ``vfs`` has the rules.
"""
