# cython: language_level=3
# The types of waits.py, of which every change uses a method.
from pmxcfs.fuse.stalls cimport Writes
from pmxcfs.replica.waiting cimport RequestWatch


cdef class Waits:
    cdef readonly Py_ssize_t waiting_count
    cdef public Py_ssize_t limit
    cdef readonly object stalls
    cdef readonly int _descriptor
    cdef object _reader_call
    cdef object _queued
    cdef double _last_turn
    cdef Writes _writes

    cpdef object close(self)
    cpdef object _release(self)
    cpdef object _acquire(self)
    cpdef bint _begin(self) except -1
    cpdef object _end(self)
    cpdef object _call_reader(self)
    cpdef RequestWatch begin_write(self)
    cpdef object end_write(self, RequestWatch watch)
    cpdef RequestWatch begin_waiting(self, bint must=*)
    cpdef object expect_write(self, RequestWatch watch)
    cpdef object end_waiting(self, RequestWatch watch)
    cdef RequestWatch _new_watch(self)
    cdef object _come_back(self, RequestWatch watch)
    cdef object _await_place(self)
