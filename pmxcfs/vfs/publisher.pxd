# cython: language_level=3
# The types of publisher.py, which every write calls.


cdef class Publisher:
    cdef object _lock
    cdef bint _is_armed
    cdef object _wanted
    cdef object _thread

    cpdef object notice(self)
