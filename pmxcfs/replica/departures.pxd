# cython: language_level=3
# Compiled because every removal is noted; no C types are needed.
