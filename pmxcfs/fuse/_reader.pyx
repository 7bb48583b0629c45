# cython: language_level=3, auto_pickle=False, autotestdict=False
"""The reader of /dev/fuse: takes requests, has them handled, sends the replies.

Each thread of the session has a Reader. One of them at a time takes requests. If its handler waits,
another one is called to take requests; the first one sends its reply when the wait is over.

A reply is sent and the next request awaited without the interpreter's lock in between.
Contract: docs/spec/session.md, "Turns".
"""

from libc.errno cimport EIO, ENOENT, ENODEV, ECONNABORTED
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc

from pmxcfs.fuse._decode cimport decode
from pmxcfs.fuse._device cimport BUFFER_SIZE, Device
from pmxcfs.fuse._dispatcher cimport Dispatcher
from pmxcfs.fuse.handlers cimport Handlers

import logging
import os

_log = logging.getLogger("pmxcfs.fuse")


cdef class Reader(Dispatcher):
    """One thread's buffer, and the request that it handles."""

    cdef readonly uint64_t number
    cdef Device _device

    def __cinit__(self):
        self.room = <char *>malloc(BUFFER_SIZE)  # of the request, and of a listing after that
        if self.room == NULL:
            raise MemoryError
        self.room_size = BUFFER_SIZE

    def __init__(self, uint64_t number, Device device not None, Handlers handlers not None, lock,
                 interrupts):
        """*number* is not 0. *lock* is the tree's. *interrupts* are those of all readers."""
        Dispatcher.__init__(self, handlers, lock, interrupts)
        self.number = number
        self._device = device

    def __dealloc__(self):
        free(self.room)

    def run(self):
        """Take and answer requests for as long as it is this reader's turn. Blocks."""
        cdef Py_ssize_t size
        cdef int failure
        cdef bint has_reply = False
        while True:
            failure = 0
            with nogil:
                if has_reply:
                    failure = self._send()
                size = self._device.take(self.room, self.number)
            if failure:
                self._log_failure(failure)
            if size == 0:
                return
            has_reply = self.handle(decode(self.room, <size_t>size, &self.request))

    cdef int _send(self) noexcept nogil:
        """Send the reply; if the kernel refuses it, an error, so that the caller does not hang."""
        cdef int failure = self._device.send(
            self.request.unique, self.error, self.fixed, self.fixed_size,
            self.more_at, self.more_size, self.number)
        if failure == 0 or failure == ENOENT or failure == ENODEV or failure == ECONNABORTED:
            return 0
        self._device.send(self.request.unique, EIO, NULL, 0, NULL, 0, self.number)
        return failure

    cdef int _log_failure(self, int failure) except -1:
        _log.error("a reply to the FUSE request %d was refused, which is a bug: %s",
                   self.request.opcode, os.strerror(failure))
        return 0
