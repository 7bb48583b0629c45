# cython: language_level=3
# The types of counters.py, which counts every change.
cimport cython

from pmxcfs.tree.guests cimport Guests, parse_guest_path


cdef class _Pending:
    cdef readonly object sequence
    cdef list watched
    cdef list guests
    cdef bint is_reload


cdef class Status:
    cdef readonly str node
    cdef readonly object start_time
    cdef public object members
    cdef public object metrics
    cdef public object keys
    cdef public object log
    cdef readonly object vmlist
    cdef readonly dict counters
    cdef readonly dict guest_lines
    cdef readonly object revision
    cdef Guests _guests
    cdef object _guest_version
    cdef object _pending

    @cython.locals(watched=list, guests=dict)
    cpdef bint on_change(self, str path, str source=*, sequence=*) except -1
    cdef bint _find(self, str path, list watched, dict guests) except -1
    cpdef object absorb(self, handed)
    cdef object _count(self, _Pending pending)
    cdef object _list_guest(self, guest)
