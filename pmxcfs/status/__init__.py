"""State that nodes exchange beside the tree, and the status files (``.version`` etc.) made of it.

Pure: callers give the time. Knows nothing of how messages are sent.
"""
