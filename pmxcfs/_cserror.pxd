# cython: language_level=3
"""Types that all client libraries of corosync share: corosync/corotypes.h."""

cdef extern from "<corosync/corotypes.h>" nogil:
    ctypedef enum cs_error_t:
        CS_OK
        CS_ERR_LIBRARY
        CS_ERR_TRY_AGAIN
        CS_ERR_BAD_HANDLE
        CS_ERR_NOT_EXIST
        CS_ERR_INTERRUPT
        CS_ERR_NO_SECTIONS

    ctypedef enum cs_dispatch_flags_t:
        CS_DISPATCH_ONE_NONBLOCKING

    enum:
        CS_TRACK_CURRENT
        CS_TRACK_CHANGES

    const char *cs_strerror(cs_error_t err)

cdef int check(cs_error_t status, str call) except -1
cdef int after_dispatch(cs_error_t status, str call, int fd, bint was_called) except -1
cdef int before_send(int fd, str call) except -1
