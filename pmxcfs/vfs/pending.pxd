# cython: language_level=3
# The types of pending.py, which looks at every change that is applied.
cimport cython
from libc.stdint cimport int64_t

from pmxcfs._core cimport Entry, Tree
from pmxcfs.tree.apply cimport Change


cdef class PendingFiles:
    cdef readonly dict by_directory
    cdef readonly dict files
    cdef readonly set announced
    cdef Tree _tree
    cdef object _is_known
    cdef object _on_displaced

    @cython.locals(names=dict)
    cpdef Entry find(self, Entry directory, str name)
    cpdef list children(self, Entry directory)
    cpdef object remove(self, Entry entry)

    @cython.locals(names=dict)
    cdef object _leave_directory(self, Entry entry)
    cpdef list due(self, int64_t before_ns)
    cpdef int64_t oldest_ns(self) except? -1
    cpdef object pass_over(self, Entry entry)

    @cython.locals(parent=Entry, found=Entry)
    cpdef object check(self, Entry entry)
    cpdef object explain(self, Entry entry, error)
    cdef object _error_at(self, Entry found)

    @cython.locals(entry=Entry, held=Entry)
    cpdef object on_applied(self, Change change, bint foreign)

    @cython.locals(entry=Entry, parent=Entry)
    cdef Entry _left_behind(self, str path)
    cdef object _follow(self, Entry directory)
    cdef bint _stand_in(self, Entry held, Entry entry) except -1

    @cython.locals(entry=Entry, parent=Entry, found=Entry)
    cpdef object on_reload(self)

    @cython.locals(parent=Entry, found=Entry, names=dict)
    cdef Entry _directory_of(self, Entry entry)


cpdef bint is_dead(Entry entry) except -1
cpdef bint was_in_tree(Entry entry) except -1
