# cython: language_level=3
# The types of turns.py, of which every change uses a method.
from pmxcfs.fuse.interrupts cimport Interrupts
from pmxcfs.fuse.waits cimport Waits
from pmxcfs.host.locking cimport Lock


cdef class Turns(Waits):
    cdef readonly object is_over
    cdef readonly Interrupts interrupts
    cdef Lock _lock
    cdef object _device
    cdef object _make_reader
    cdef object _mutex
    cdef list _spare
    cdef Py_ssize_t _count
    cdef object _reading

    cpdef object begin(self, device, make_reader)
    cpdef bint await_turn(self, thread) except -1
    cdef object _new_thread(self)
