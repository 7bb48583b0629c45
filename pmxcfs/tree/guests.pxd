# cython: language_level=3
# The types of guests.py, which is asked about every path that changes.


cpdef object parse_guest_path(str path)
cdef object _parse_vmid(str name)
cdef bint _is_node_name(str name) except -1


cdef class Guests:
    cdef dict _places
    cdef dict _before

    cpdef object get(self, vmid)
    cpdef object register(self, guest)
    cpdef object unregister(self, vmid)
    cpdef object mark_saved(self)
    cpdef object rollback(self)
    cdef object _remember(self, vmid)
