# cython: language_level=3
# The types of tree_source.py, through which every change of this node goes.
cimport cython

from pmxcfs.replica.outbox cimport Outbox, Proposal


cdef class Proposals:
    cdef dict _sent

    cpdef object add(self, serial, Proposal proposal)
    cpdef Proposal pop(self, serial)


cdef class TreeSource:
    cdef Outbox _outbox
    cdef Proposals _proposals
    cdef object _lock
    cdef Proposal _current
    cdef double _taken_at

    @cython.locals(proposal=Proposal)
    cpdef object take(self, double now)

    @cython.locals(proposal=Proposal)
    cpdef object sent(self, serial)
    cdef object _finish(self, Proposal proposal, error)

    @cython.locals(proposal=Proposal)
    cdef Proposal _taken(self)
