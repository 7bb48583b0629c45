# cython: language_level=3
# The types of journal.py, which runs for every change.
cimport cython
from libc.stdint cimport int64_t

from pmxcfs.host.locking cimport Lock
from pmxcfs.storage._journal cimport frame
from pmxcfs.storage.segment_file cimport SegmentFile


@cython.locals(body=bytes, size=Py_ssize_t)
cpdef Py_ssize_t size_of(bodies) except -1


cdef class Journal:
    cdef readonly bytes lineage
    cdef int64_t _first
    cdef int64_t _end
    cdef int64_t _sequence
    cdef readonly object failure
    cdef readonly bint is_broken
    cdef object _directory
    cdef object _history
    cdef object _prepare
    cdef int _descriptor
    cdef list _left
    cdef bint _is_staging
    cdef object _staging
    cdef double _flush_at
    cdef SegmentFile _current
    cdef int64_t _room
    cdef dict _starts
    cdef int64_t _total
    cdef readonly int64_t appended
    cdef list _sealed
    cdef list _untrusted
    cdef bint _is_listed
    cdef object _synced
    cdef int64_t _attempts
    cdef double _retry_at
    cdef bint _is_closed
    cdef object _sync_lock
    cdef Lock _lock
    cdef object _tried

    cpdef bint is_full(self) except -1
    cpdef int64_t size_since(self, position) except? -1
    cpdef bint has_room(self, int64_t size) except -1
    cpdef bint can_take(self, int64_t size) except -1
    cpdef object append(self, list bodies, double seconds=*)
    cpdef object stage(self, list bodies, double seconds=*)
    cdef object _append(self, list bodies, double seconds, bint may_stage)
    cdef object _write(self, SegmentFile current, bytes data)
    cdef object _flush(self)
    cdef object _check_usable(self)
