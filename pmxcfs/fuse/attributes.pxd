# cython: language_level=3
# C types of attributes.py, of which nearly every request makes one.
from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef class Attributes:
    cdef readonly uint64_t node
    cdef readonly uint32_t mode
    cdef readonly int64_t size
    cdef readonly int64_t time
    cdef readonly uint32_t gid
    cdef public uint32_t nlink
    cdef public int64_t name_seconds
    cdef public int64_t seconds


cdef class Wanted:
    cdef readonly object mode
    cdef readonly object uid
    cdef readonly object gid
    cdef readonly object size
    cdef readonly object mtime


cdef class Requester:
    cdef readonly uint32_t pid
    cdef readonly uint32_t uid


cdef class Statistics:
    cdef readonly uint32_t block_size
    cdef readonly uint64_t blocks
    cdef readonly uint64_t free_blocks
    cdef readonly uint64_t entries
    cdef readonly uint64_t free_entries
    cdef readonly uint32_t name_size
