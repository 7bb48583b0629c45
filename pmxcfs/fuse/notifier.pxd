# cython: language_level=3
# Compiled because every change queues notifications here; its types are Python's.
