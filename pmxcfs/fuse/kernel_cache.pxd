# cython: language_level=3
# C types of kernel_cache.py, whose code runs for every change.
from pmxcfs._core cimport Entry, Tree
from pmxcfs.tree.apply cimport Change


cdef class KernelCache:
    cdef object _notifier
    cdef Tree _tree
    cdef object _known
    cdef object _handles
    cdef object _may_be_absent

    cdef object _on_own(self, Change change)
    cdef object _on_foreign(self, Change change)
