# cython: language_level=3
# C types of node_ids.py, whose code runs for every request.


cdef class NodeIds:
    cdef readonly dict objects
    cdef readonly dict handles
    cdef dict _references
    cdef object _last
    cdef dict _absent
    cdef Py_ssize_t _absent_count

    cpdef bint is_known(self, found) except -1
    cpdef object number(self, found)
    cpdef object reference(self, found)
    cpdef object forget(self, node, count)
    cpdef object note_absent(self, parent, bytes name)
