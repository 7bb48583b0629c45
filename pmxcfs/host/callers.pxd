# cython: language_level=3
# The types of callers.py, which runs for every request that changes something.
cimport cython
from libc.stdint cimport int64_t, uint32_t


cdef class Callers:
    cdef object _now_ns
    cdef str _proc
    cdef dict _known

    cdef object _last
    cdef uint32_t _last_pid
    cdef uint32_t _last_uid
    cdef int64_t _last_ns

    @cython.locals(now_ns=int64_t)
    cpdef object of(self, uint32_t pid, uint32_t uid)

    @cython.locals(known=tuple)
    cdef tuple _find(self, uint32_t pid, uint32_t uid, int64_t now_ns)
    cdef bytes _name(self, pid)
    cdef object _login_uid(self, pid)
