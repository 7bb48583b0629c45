# cython: language_level=3
# Compiled because every change queues notifications; no C types are needed.
