# cython: language_level=3
# The types of text.py, which runs for every name.

cpdef str to_text(bytes raw)
cpdef bytes to_bytes(str text)
