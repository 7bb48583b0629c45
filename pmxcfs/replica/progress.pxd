# cython: language_level=3
# The types of progress.py, which runs for every change in a cluster.
cimport cython


cdef class Progress:
    cdef readonly object cause
    cdef readonly double oldest
    cdef dict _in_flight
    cdef bint _is_in_sync
    cdef double _attempt_at
    cdef object _lock
    cdef object _outage

    cpdef object sent(self, change, double at)
    cpdef object came_back(self, change)
    cpdef object failed(self, error, double now)

    @cython.locals(oldest=double)
    cdef object _note_oldest(self)
    cdef object _works(self)
    cpdef bint is_stuck(self) except -1

    @cython.locals(oldest=double)
    cpdef bint is_overdue(self, double now) except -1
    cpdef bint is_moving(self, double now) except -1
    cpdef bint refuses(self, double now) except -1
