# cython: language_level=3
# The types of change_log.py, which runs for every change.
cimport cython
from libc.stdint cimport int64_t, uint64_t

from pmxcfs.host.locking cimport Lock
from pmxcfs.storage.journal cimport Journal, size_of


cdef class ChangeLog:
    cdef readonly uint64_t segment
    cdef public bint has_gap
    cdef Journal _journal
    cdef object _save
    cdef bint _is_kept
    cdef object _monotonic
    cdef object _maker
    cdef object _pending
    cdef bint _has_marker
    cdef object _version
    cdef object _version_when_full
    cdef int64_t _added
    cdef int64_t _written
    cdef int64_t _ordinary
    cdef Lock _mutex
    cdef double _busy_since
    cdef bint _has_gap_again
    cdef int64_t _refused
    cdef double _ahead_at
    cdef object _outage

    cpdef bint is_waiting(self) except -1
    cpdef bint is_ready(self, Py_ssize_t size) except -1
    cpdef object add(self, bodies)
    cpdef object add_heartbeats(self, bodies)
    cdef int64_t _waiting_size(self) except? -1

    @cython.locals(waiting=int64_t)
    cdef object _add(self, bodies, bint is_ordinary)
    cpdef object begin_segment_if_full(self, version)
    cpdef object write(self, double seconds=*)

    @cython.locals(bodies=list)
    cdef bint _write_what_fits(self, double until) except -1
    cdef object _begin_writing(self, double until)
    cdef object _end_writing(self)
    cdef bint _has_room(self, Py_ssize_t size) except -1

    @cython.locals(bodies=list)
    cdef list _take(self)
    cdef object _put_back(self, list bodies)

    @cython.locals(seconds=double)
    cdef object _append(self, list bodies, Py_ssize_t size, double until)
    cpdef object _attempt(self, size)
    cdef object _note_failure(self, error, size)
    cdef object _make_ready(self, size)
    cdef object _begin_after_full(self)
    cdef object _begin_next(self)
    cdef object _check_complete(self)
    cdef object _why_not(self)
    cdef object _forget(self)
