# cython: language_level=3
# The types of space.py, which runs for every write.
from pmxcfs._core cimport Entry, Tree


cdef class Space:
    cdef Tree _tree
    cdef object _pending
    cdef dict _reserved
    cdef object _reserved_bytes

    cpdef object check_size(self, Entry entry, end)
    cpdef object release(self, handle)
    cdef object _reserved_for(self, Entry entry)
    cdef object _reserved_beside(self, Entry entry)
