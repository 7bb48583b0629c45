# cython: language_level=3, auto_pickle=False, autotestdict=False
"""A libqb client for the commands: sends a request and returns the content of the answer.

Threads: one thread at a time uses a client; calls that block release the GIL.
Contract: docs/spec/ipc.md.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EFBIG, EPROTO, ETIMEDOUT, errno
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from pmxcfs.ipc._qb cimport (
    POLLIN, iovec, now_ms, poll, pollfd, qb_ipc_request_header, qb_ipc_response_header,
    qb_ipcc_connect_async, qb_ipcc_connect_continue, qb_ipcc_connection_t, qb_ipcc_disconnect,
    qb_ipcc_get_buffer_size, qb_ipcc_recv, qb_ipcc_sendv,
)

import os

from pmxcfs.errors import IpcError

REQUEST_HEADER = sizeof(qb_ipc_request_header)
RESPONSE_HEADER = sizeof(qb_ipc_response_header)


cdef object failure(str call, int code):
    return IpcError(f"{call}: {os.strerror(code)}", code)


cdef ssize_t send_until(qb_ipcc_connection_t* c, iovec* parts, int64_t until_ms) noexcept nogil:
    """Send a request of two parts; while the ring is full, retry until *until_ms*.

    The server frees a request's room in the ring only after it has answered the request.
    """
    cdef ssize_t result
    while True:
        result = qb_ipcc_sendv(c, parts, 2)
        if result != -EAGAIN or now_ms() >= until_ms:
            return result
        poll(NULL, 0, 1)


cdef class Client:
    """A connection to the libqb service *name*.

    Connecting blocks for up to *timeout_ms*. It raises IpcError if no server listens, the server
    refuses, or it does not answer in time.
    """

    cdef qb_ipcc_connection_t* _connection
    cdef bytearray _buffer

    def __cinit__(self, str name not None, *, Py_ssize_t buffer_size=1 << 20, int timeout_ms=10000):
        cdef bytes raw = name.encode()
        cdef const char* c_name = raw
        cdef pollfd waiting
        cdef int result, fd = -1
        with nogil:
            self._connection = qb_ipcc_connect_async(c_name, <size_t>buffer_size, &fd)
            result = -errno if self._connection == NULL else 0
        if result:
            raise failure(f"connect to {name}", -result)
        waiting.fd, waiting.events = fd, <short>POLLIN
        with nogil:
            result = poll(&waiting, 1, timeout_ms)
            # libqb frees the connection if connect_continue fails.
            result = qb_ipcc_connect_continue(self._connection) if result == 1 else -ETIMEDOUT
        if result and result != -ETIMEDOUT:
            self._connection = NULL
        if result:
            raise failure(f"connect to {name}", -result)
        self._buffer = bytearray(qb_ipcc_get_buffer_size(self._connection))

    def ask(self, int32_t id, bytes payload not None, *, int32_t timeout_ms=10000):
        """Send the request *id*; return the content of the answer. Blocks for up to *timeout_ms*.

        Raises IpcError with the errno of the answer. If no answer comes, also closes the client:
        a late answer would be taken for that of the next request.
        """
        cdef qb_ipc_request_header request
        cdef qb_ipc_response_header* response
        cdef iovec parts[2]
        cdef char* buffer
        cdef size_t room
        cdef ssize_t got
        if self._connection == NULL:
            raise ValueError("the client is closed")
        buffer, room = self._buffer, <size_t>len(self._buffer)
        if len(payload) > <Py_ssize_t>(room - sizeof(request)):
            raise failure("send a request", EFBIG)
        memset(&request, 0, sizeof(request))
        request.id = id
        request.size = <int32_t>(sizeof(request) + <size_t>len(payload))
        parts[0].iov_base, parts[0].iov_len = &request, sizeof(request)
        parts[1].iov_base, parts[1].iov_len = PyBytes_AS_STRING(payload), <size_t>len(payload)
        with nogil:
            got = send_until(self._connection, parts, now_ms() + timeout_ms)
            if got >= 0:
                got = qb_ipcc_recv(self._connection, buffer, room, timeout_ms)
        if got < 0:
            self.close()
            raise failure("wait for the answer", ETIMEDOUT if got == -EAGAIN else <int>-got)
        response = <qb_ipc_response_header*>buffer
        if <size_t>got < sizeof(qb_ipc_response_header) or response.size != got:
            raise failure("read the answer", EPROTO)
        if response.error:
            raise failure("the daemon refused the request", abs(response.error))
        return PyBytes_FromStringAndSize(
            buffer + sizeof(qb_ipc_response_header),
            got - <ssize_t>sizeof(qb_ipc_response_header))

    def close(self):
        """Disconnect."""
        if self._connection != NULL:
            with nogil:
                qb_ipcc_disconnect(self._connection)
            self._connection = NULL

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def __dealloc__(self):
        if self._connection != NULL:
            qb_ipcc_disconnect(self._connection)
