# cython: language_level=3
# The types of interrupts.py, of which every change in a cluster uses a method.
from pmxcfs.replica.waiting cimport Interruption


cdef class Interrupts:
    cdef object _monotonic
    cdef dict _handled
    cdef dict _early

    cpdef object begin(self, handled)
    cpdef object end(self)
    cpdef object interrupt(self, unique)
    cpdef Interruption interruptible(self, wake)
    cdef object _forget_old(self)
