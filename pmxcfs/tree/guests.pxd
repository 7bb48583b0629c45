# cython: language_level=3
# Types for guests.py, which parses the path of every change.

cimport cython


@cython.locals(known=dict)
cpdef object parse_guest_path(str path)
cdef object _parse(str path)
cdef object _parse_vmid(str name)
cdef bint _is_node_name(str name) except -1


cdef class Guests:
    cdef dict _places
    cdef dict _undo

    cpdef object get(self, vmid)
    cpdef bint conflicts(self, guest, source=*) except -1
    cpdef object register(self, guest)
    cpdef object unregister(self, vmid)
    cpdef object mark_written(self)
    cpdef object rollback(self)
    cdef object _keep_undo(self, vmid)
