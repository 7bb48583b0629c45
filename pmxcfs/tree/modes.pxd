# cython: language_level=3
# Types for modes.py, which runs for every lookup and getattr.
from pmxcfs._core cimport Entry


cpdef bint is_script(str name) except -1
cpdef bint is_private_path(str path) except -1
cpdef object without_quorum(mode)
cdef object _file_mode(str name, bint private)
cpdef bint changes_mode(str source, str target) except -1
