# cython: language_level=3
# Compiled because every change is counted; no C types are needed.
