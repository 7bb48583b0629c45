# cython: language_level=3
# The types of tree_source.py, through which every change of this node goes.


cdef class Proposals:
    cdef dict _sent

    cpdef object add(self, serial, proposal)
    cpdef object pop(self, serial)


cdef class TreeSource:
    cdef object _outbox
    cdef Proposals _proposals
    cdef object _lock
    cdef object _current
    cdef double _taken_at

    cpdef object sent(self, serial)
    cdef object _finish(self, proposal, error)
    cdef object _taken(self)
