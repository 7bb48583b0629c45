# cython: language_level=3
# The types of change_log.py, which runs for every change.
from libc.stdint cimport int64_t, uint64_t


cdef class ChangeLog:
    cdef readonly uint64_t segment
    cdef public bint has_gap
    cdef object _journal
    cdef object _save
    cdef object _monotonic
    cdef object _pause
    cdef object _pending
    cdef bint _has_marker
    cdef object _version
    cdef int64_t _added
    cdef int64_t _written
    cdef object _mutex
    cdef object _attempt
    cdef bint _has_gap_again
    cdef int64_t _attempts
    cdef double _next_attempt
    cdef object _outage

    cpdef bint is_ready(self, Py_ssize_t size) except -1
    cpdef object add(self, bodies)
    cpdef object begin_segment_if_full(self, version)
    cpdef object write(self)
    cdef object _make_ready(self, size, version)
    cdef object _begin_segment(self, version)
    cdef object _write(self)
    cdef list _take(self)
    cdef object _why_not(self)
    cdef object _forget(self)
