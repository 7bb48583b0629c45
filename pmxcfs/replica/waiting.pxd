# cython: language_level=3
# The types of waiting.py, of which every change makes a watch.


cdef class RequestWatch:
    cdef public bint is_active
    cdef int _descriptor
    cdef object _call

    cpdef object stop(self)
