# cython: language_level=3
# The types of tickets.py, which runs for every change.
from libc.stdint cimport uint32_t

from pmxcfs._core cimport Entry, Tree
from pmxcfs.host.locking cimport Lock
from pmxcfs.tree.apply cimport Change


cdef class Signal:
    cdef bint _is_given
    cdef Lock _lock

    cpdef object give(self)
    cpdef bint wait(self, double seconds) except -1


cdef class Ticket:
    cdef public object mutation
    cdef public uint32_t writer
    cdef public uint32_t mtime
    cdef public bint foreign
    cdef public object caller
    cdef readonly Entry made
    cdef readonly double timeout
    cdef readonly double limit
    cdef readonly bint for_another
    cdef public bint is_queued
    cdef public bint is_done
    cdef public Change change
    cdef public object error
    cdef Entry _target
    cdef object _objection
    cdef Signal _done
    cdef list _others

    cpdef object objection(self)
    cpdef object with_current_path(self, Tree tree)
    cpdef object finish(self, object error=*)
    cpdef object judge(self, error, Py_ssize_t part)
    cpdef object check(self)
    cpdef Change result(self)


cpdef double timeout_for(Ticket ticket) except? -1
cpdef double limit_for(Ticket ticket) except? -1
cdef bint _is_of_name(Ticket ticket) except -1
