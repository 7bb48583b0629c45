# cython: language_level=3
# Compiled because every change is noted; no C types are needed.
