# cython: language_level=3
"""Translation of the status codes of corosync's client libraries to exceptions.

The bindings cimport ``check`` and ``after_dispatch``; nothing here can be called from Python.
"""

from pmxcfs.errors import ClusterError, Disconnected, Interrupted, TryAgain

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents

    enum:
        POLLOUT
        POLLERR
        POLLHUP
        POLLNVAL

    int poll(pollfd *fds, unsigned long nfds, int timeout)

# Any other code raises ClusterError. The libraries also return CS_ERR_LIBRARY for an unknown errno;
# there, too, a new connection is the right reaction.
_MEANING = {
    CS_ERR_TRY_AGAIN: TryAgain,
    CS_ERR_LIBRARY: Disconnected,
    CS_ERR_BAD_HANDLE: Disconnected,
    CS_ERR_INTERRUPT: Interrupted,
}


cdef int check(cs_error_t status, str call) except -1:
    """Return 0 if *status* is CS_OK, else raise its ClusterError with the name of *call*."""
    if status == CS_OK:
        return 0
    cdef bytes text = cs_strerror(status)
    raise _MEANING.get(status, ClusterError)(call, <int>status, text.decode("ascii", "replace"))


cdef int after_dispatch(cs_error_t status, str call, int fd, bint was_called) except -1:
    """Return 1 if a non-blocking dispatch took an event, 0 if there was none.

    If their socket *fd* is closed, the libraries return CS_OK without a callback, on every call. A
    fragment of an incomplete message gives the same result, so polling the socket decides. Raises
    Disconnected if the socket is closed.
    """
    cdef pollfd state
    if status == CS_ERR_TRY_AGAIN:
        return 0
    check(status, call)
    if not was_called:
        state.fd, state.events, state.revents = fd, 0, 0
        if poll(&state, 1, 0) != 0:
            raise Disconnected(call, <int>CS_ERR_LIBRARY, "connection lost")
    return 1


cdef int before_send(int fd, str call) except -1:
    """Raise TryAgain if the server has left many messages unread: sending could block.

    For each message, libqb writes a byte into the socket *fd*; once that is full, it tries again
    without a pause. The socket is writable while at most a quarter of it is unread.
    """
    cdef pollfd state
    state.fd, state.events, state.revents = fd, <short>POLLOUT, 0
    if poll(&state, 1, 0) == 0:
        raise TryAgain(call, <int>CS_ERR_TRY_AGAIN, "corosync does not read the messages")
    return 0
