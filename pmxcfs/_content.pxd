# cython: language_level=3
from libc.stdint cimport int64_t

cdef Py_ssize_t as_size(object value) except -1
cdef Py_ssize_t end_of(Py_ssize_t offset, bytes data) except -1
cdef bytes copy_range(bytearray buffer, Py_ssize_t start, Py_ssize_t stop)
cdef bytes splice(bytes base, Py_ssize_t offset, bytes data, bint truncate)


cdef class Draft:
    cdef bytearray buffer  # the content that readers on this node see
    cdef bytearray before  # what it was before an open has cut it off, until it changes again
    cdef Py_ssize_t low  # the dirty range is [low, high)
    cdef Py_ssize_t high
    cdef bint whole  # the whole file is dirty
    cdef list in_flight  # writebacks as (low, high, whole), oldest first; applied in this order
    cdef int64_t since_ns  # when the file became dirty; 0 if clean
    cdef Py_ssize_t growth  # this draft's part of Tree.unpublished_growth

    cdef bint is_dirty(self) noexcept
    cdef bint is_needed(self) noexcept
    cdef int extend_to(self, Py_ssize_t size) except -1
    cdef int mark_dirty(self, Py_ssize_t low, Py_ssize_t high) except -1
    cdef int write(self, Py_ssize_t offset, bytes data) except -1
    cdef int truncate(self, Py_ssize_t size, bint opening) except -1
    cdef bytes read(self, Py_ssize_t start, Py_ssize_t stop)
    cdef object take(self)
    cdef int redirty(self, bint sparse) except -1
    cdef int rebase(self, bytes content, bint sparse) except -1
    cdef bint is_replacing(self) except? True
    cdef int overlay(self, bytearray written, Py_ssize_t low, Py_ssize_t high) except -1
