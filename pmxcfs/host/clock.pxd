# cython: language_level=3
# The types of clock.py, which runs for every change.
from libc.stdint cimport int64_t


cpdef int64_t seconds() except -1
cpdef int64_t nanoseconds() except -1
