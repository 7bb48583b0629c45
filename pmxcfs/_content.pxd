# cython: language_level=3
from libc.stdint cimport int64_t

cdef Py_ssize_t as_size(object value) except -1
cdef Py_ssize_t end_of(Py_ssize_t offset, bytes data) except -1
cdef bytes cut(bytearray buffer, Py_ssize_t start, Py_ssize_t stop)
cdef bytes splice(bytes base, Py_ssize_t offset, bytes data, bint truncate)


cdef class Draft:
    cdef bytearray buffer  # what readers on this node see
    cdef Py_ssize_t low
    cdef Py_ssize_t high
    cdef bint whole
    cdef list flights  # oldest first; WRITEs are applied in the order they were taken
    cdef int64_t since_ns  # of the first dirty byte; 0 if there is none
    cdef Py_ssize_t growth  # what the tree's unpublished_growth has for this draft

    cdef bint is_dirty(self) noexcept
    cdef bint is_needed(self) noexcept
    cdef int extend_to(self, Py_ssize_t size) except -1
    cdef int cover(self, Py_ssize_t low, Py_ssize_t high) except -1
    cdef int write(self, Py_ssize_t offset, bytes data) except -1
    cdef int truncate(self, Py_ssize_t size) except -1
    cdef object take(self)
    cdef int put_back(self) except -1
    cdef int rebase(self, bytes content, bint sparse) except -1
    cdef bint is_replacing(self) except? True
    cdef int overlay(self, bytearray written, Py_ssize_t low, Py_ssize_t high) except -1
