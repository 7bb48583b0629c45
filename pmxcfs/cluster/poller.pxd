# cython: language_level=3
# The types of poller.py, which polls several times for every change.
from pmxcfs.replica.waiting cimport RequestWatch


cdef class Poller:
    cdef int _descriptor
    cdef int _wakeup
    cdef int _watched
    cdef object _inner
    cdef object _outer
    cdef object _with_watch

    cpdef object sleep(self, double seconds)
    cpdef bint listen(self, double seconds, RequestWatch watch=*) except -1
    cdef list _poll_with_watch(self, RequestWatch watch, double seconds)
    cpdef object mute(self)
    cpdef object unmute(self)


cdef bint _is_in(int descriptor, list events) except -1
