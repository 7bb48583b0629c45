# cython: language_level=3
# The types of what is asked for every change; the threads' part needs none.
from pmxcfs._core cimport Entry, Tree
from pmxcfs.tree.apply cimport Change


cdef class KernelCache:
    cdef object _notifier
    cdef Tree _tree
    cdef object _known
    cdef object _may_be_absent

    cdef object _on_foreign(self, Change change)
