# cython: language_level=3
"""What a status of corosync's libraries means: one table for all of them.

The bindings cimport ``check`` and ``after_dispatch``; nothing here can be called from Python.
"""

from pmxcfs.errors import ClusterError, Disconnected, Interrupted, TryAgain

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents

    enum:
        POLLERR
        POLLHUP
        POLLNVAL

    int poll(pollfd *fds, unsigned long nfds, int timeout)

# A code that is not here is an error all the same, just one without a class of its own. LIBRARY is
# also what the libraries make of an errno they don't know: a new connection is right there, too.
_MEANING = {
    CS_ERR_TRY_AGAIN: TryAgain,
    CS_ERR_LIBRARY: Disconnected,
    CS_ERR_BAD_HANDLE: Disconnected,
    CS_ERR_INTERRUPT: Interrupted,
}


cdef int check(cs_error_t status, str call) except -1:
    """Turn a status into an exception that remembers *call* and the code."""
    if status == CS_OK:
        return 0
    cdef bytes text = cs_strerror(status)
    raise _MEANING.get(status, ClusterError)(call, <int>status, text.decode("ascii", "replace"))


cdef int after_dispatch(cs_error_t status, str call, int fd, bint was_called) except -1:
    """Return 1 if a dispatch without waiting took an event, 0 if there was none.

    The libraries report that their socket is gone as CS_OK, at once and again and again; but CS_OK
    without a callback is also a fragment of a message that is not complete, so the socket decides.
    """
    cdef pollfd state
    if status == CS_ERR_TRY_AGAIN:
        return 0
    check(status, call)
    if not was_called:
        state.fd, state.events, state.revents = fd, 0, 0
        if poll(&state, 1, 0) != 0:
            raise Disconnected(call, <int>CS_ERR_LIBRARY, "the connection is gone")
    return 1
