# cython: language_level=3
# The types of turn.py, which runs for every change.


cdef class Turn:
    cdef readonly bint is_taken
    cdef object _yielding
    cdef list _waiting

    cpdef object begin(self)
    cpdef object end(self)
    cpdef object await_end(self, double seconds)
