# cython: language_level=3
# C types of kernel_cache.py, whose code runs for every change.
cimport cython

from pmxcfs._core cimport Entry, Tree
from pmxcfs.tree.apply cimport Change


cdef class KernelCache:
    cdef object _notifier
    cdef Tree _tree
    cdef object _known
    cdef object _handles
    cdef object _may_be_absent

    cdef object _on_own(self, Change change)

    @cython.locals(entry=Entry, gone=Entry)
    cdef object _on_foreign(self, Change change)
    cdef object _forget_entry(self, Entry entry, bint pages)
    cdef object _forget_inode(self, Entry entry, bint pages)
    cdef object _forget_place(self, Entry directory, str name, Entry before)
    cdef object _forget_name(self, Entry directory, str name)

    @cython.locals(parent=Entry)
    cdef object _look_up_again(self, Entry entry, bint pages)
