# cython: language_level=3
from libc.stdint cimport uint32_t, uint64_t

from pmxcfs.fuse._decode cimport Request
from pmxcfs.fuse.attributes cimport Attributes, Requester, Statistics, Wanted
from pmxcfs.fuse.handlers cimport Handlers
from pmxcfs.host.locking cimport Lock


cdef class Dispatcher:
    # Of the request that is handled now, or was last:
    cdef public bint is_interrupted  # its program has got a signal
    cdef public object on_interrupt  # called when that happens; None: nobody waits
    cdef Request request
    cdef char *room  # to make a listing in: the request's buffer, once that is decoded
    cdef size_t room_size
    cdef int error  # instead of a reply
    cdef char *fixed  # the reply's structure
    cdef size_t fixed_size
    cdef const char *more_at  # what follows it
    cdef size_t more_size
    cdef bytes _more  # holds these bytes
    cdef uint64_t _opened  # the handle in the reply, for debug messages
    cdef Handlers _handlers
    cdef Lock _lock
    cdef object _interrupts

    cdef bint handle(self, int error) except -1
    cdef int _take_note(self) except -1
    cdef int _dispatch(self) except -1
    cdef int _dispatch_change(self) except -1
    cdef bytes _name(self)
    cdef bytes _new_name(self)
    cdef int _open(self) except -1
    cdef int _create(self, Requester requester) except -1
    cdef int _write(self) except -1
    cdef int _set_attributes(self, Requester requester) except -1
    cdef Wanted _wanted(self)
    cdef int _list(self, bint with_attributes) except -1
    cdef int _put_entry(self, Attributes found) except -1
    cdef int _put_attributes(self, Attributes found) except -1
    cdef int _put_handle(self, size_t offset, uint32_t flags) except -1
    cdef int _put_statistics(self, Statistics found) except -1
    cdef int _dispatch_logged(self, str name) except -1
    cdef tuple _arguments(self)
