# cython: language_level=3
# The types of segment_file.py, which runs for every change.
from libc.stdint cimport int64_t


cdef class SegmentFile:
    cdef readonly object path
    cdef readonly int64_t first
    cdef readonly int64_t end
    cdef readonly int64_t synced
    cdef bytes _lineage
    cdef int64_t _written
    cdef bytes _staged
    cdef object _staging
    cdef int _descriptor
    cdef int64_t _reserved

    cpdef bint stage(self, bytes data) except -1
    cpdef object append(self, bytes data)
    cpdef object _reserve_to(self, int64_t end)
    cpdef object _write(self, bytes data, int64_t offset)
