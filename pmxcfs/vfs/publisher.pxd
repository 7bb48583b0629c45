# cython: language_level=3
# Compiled because every write calls it; no C types are needed.
