# cython: language_level=3
# Types for modes.py, which runs for every lookup and getattr.
from libc.stdint cimport uint32_t

from pmxcfs._core cimport Entry


cpdef bint is_script(str name) except -1
cpdef bint is_private_path(str path) except -1
cpdef uint32_t without_quorum(uint32_t mode) except? 0
cdef uint32_t _file_mode(str name, bint private) except? 0
cpdef uint32_t mode_of(Entry entry, bint quorate) except? 0
cpdef bint changes_mode(str source, str target) except -1
