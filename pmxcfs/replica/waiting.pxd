# cython: language_level=3
# The types of waiting.py, of which every change makes a watch and an interruption.


cdef class RequestWatch:
    cdef public bint is_active
    cdef int _descriptor
    cdef object _call

    cpdef object stop(self)


cdef class Interruption:
    cdef object _request
    cdef object _wake
    cdef object _outer

    cpdef object check(self)
    cpdef object begin(self)
    cpdef object end(self)
