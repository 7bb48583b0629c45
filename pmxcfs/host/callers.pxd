# cython: language_level=3
# The types of callers.py, which runs for every request that changes something.
cimport cython
from libc.stdint cimport int64_t


cdef class Callers:
    cdef object _now_ns
    cdef str _proc
    cdef dict _known

    @cython.locals(now_ns=int64_t, known=tuple)
    cpdef object of(self, pid, uid)
    cdef bytes _name(self, pid)
    cdef object _login_uid(self, pid)
