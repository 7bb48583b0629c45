# cython: language_level=3
# The types of loop.py, which runs for every message.
cimport cython

from pmxcfs._cpg cimport decode
from pmxcfs.cluster.poller cimport Poller
from pmxcfs.cluster.sender cimport Clock, Sender
from pmxcfs.host.locking cimport Lock
from pmxcfs.replica.waiting cimport RequestWatch


@cython.final
cdef class Delivered:
    cdef object sender
    cdef bytes data


@cython.final
cdef class Changed:
    cdef readonly object members
    cdef readonly object joined


cdef class GroupLoop:
    cdef readonly Lock ownership
    cdef object _group
    cdef object _dfsm
    cdef object _content
    cdef Sender _sender
    cdef object _membership
    cdef Clock _clock
    cdef object _wakeup
    cdef object _is_stopping
    cdef object _handle
    cdef Poller _poller
    cdef RequestWatch _watch
    cdef object _failure
    cdef list _events
    cdef list _batch
    cdef double _tick_at

    cdef object _serve_once(self, handle, Poller poller)
    cdef object _raise_failure(self)

    @cython.locals(poller=Poller, seconds=double, left=double)
    cdef bint _dispatch_until(self, awaited, double until, RequestWatch watch) except -1
    cdef bint _dispatch_and_send_briefly(self, handle, Poller poller, double seconds) except -1

    @cython.locals(sender=Sender)
    cdef bint _is_quiet(self) except -1

    @cython.locals(until=double)
    cdef double _sleep_seconds(self) except? -1

    @cython.locals(now=double)
    cdef object _tick(self)
    cdef double _tick_interval(self) except? -1

    @cython.locals(count=int)
    cdef int _dispatch(self, handle) except -1
    cdef object _dispatch_until_echoed(self, handle)
    cdef object _take_events(self)
    cdef object _take_message(self, Delivered event)
    cpdef object carry_out(self, effects)
    cpdef object flush(self)
