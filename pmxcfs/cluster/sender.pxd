# cython: language_level=3
# The types of sender.py, which runs for every change in a cluster.
cimport cython
from libc.stdint cimport int64_t

from pmxcfs._cpg cimport encode
from pmxcfs.host.clock cimport seconds


cdef class Clock:
    cpdef double monotonic(self) except? -1
    cpdef int64_t wall(self) except? -1


cdef class Sender:
    cdef readonly int64_t sent_bytes
    cdef readonly double retry_at
    cdef object _group
    cdef object _dfsm
    cdef object _source
    cdef Clock _clock
    cdef object _queue
    cdef object _in_flight
    cdef Py_ssize_t _changes_in_flight
    cdef Py_ssize_t _bytes_in_flight
    cdef bint _is_filling
    cdef double _pause
    cdef object _trying_since

    cpdef object put(self, message)

    @cython.locals(size=Py_ssize_t)
    cpdef object echoed(self)

    @cython.locals(lots=Py_ssize_t)
    cpdef object send(self, mcast)

    @cython.locals(count=Py_ssize_t)
    cdef bint _may_send_next(self, Py_ssize_t lots) except -1
    cdef object _send_lot(self, mcast)

    @cython.locals(size=Py_ssize_t)
    cdef list _next_lot(self)
    cdef bint _is_late(self, message) except -1
    cdef object _send_changes(self, mcast)
    cdef bint _may_send_change(self) except -1

    @cython.locals(now=double)
    cdef bint _send_change(self, mcast) except -1

    @cython.locals(size=Py_ssize_t)
    cdef object _mcast(self, mcast, bytes data, bint is_change)
    cdef object _retry_or_refuse(self, double now, error)
    cdef object _end_pause(self)
