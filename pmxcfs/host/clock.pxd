# cython: language_level=3
# The types of clock.py, which runs for every change.
cimport cython
from libc.stdint cimport int64_t


@cython.locals(now=int64_t)
cpdef int64_t seconds() except -1


@cython.locals(now=int64_t)
cpdef int64_t nanoseconds() except -1
