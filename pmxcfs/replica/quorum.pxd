# cython: language_level=3
# The types of quorum.py, which is read for the mode of every entry.


cdef class QuorumFlag:
    cdef public bint is_quorate
