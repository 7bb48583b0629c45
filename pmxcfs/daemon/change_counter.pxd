# cython: language_level=3
# The types of change_counter.py, which counts every change.
from pmxcfs.status.counters cimport Status
from pmxcfs.tree.apply cimport Change


cdef class ChangeCounter:
    cdef Status _status
    cdef object _notifier
    cdef object _clients

    cdef bint _count(self, Change change) except -1
