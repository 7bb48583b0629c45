# cython: language_level=3
# The types of stalls.py, which notes every write of records.


cdef class Writes:
    cdef readonly dict running
    cdef readonly double last
    cdef public bint are_watched

    cpdef bint begin(self, watch) except -1
    cpdef object end(self, watch)
