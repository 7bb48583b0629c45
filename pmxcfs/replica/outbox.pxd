# cython: language_level=3
# The types of outbox.py, which runs for every change in a cluster.
cimport cython

from pmxcfs.host.locking cimport Lock
from pmxcfs.replica.progress cimport Progress
from pmxcfs.replica.quorum cimport QuorumFlag
from pmxcfs.replica.tickets cimport Ticket
from pmxcfs.tree.apply cimport Change


cdef class Proposal:
    cdef readonly Ticket ticket
    cdef readonly list unsent
    cdef public bint is_partly_sent
    cdef public double sent_at
    cdef public object refusal
    cdef Py_ssize_t _part
    cdef Py_ssize_t _count

    @cython.locals(ticket=Ticket)
    cpdef object arrived(self, Change change, error)


cdef class Outbox:
    cdef public bint is_held
    cdef readonly object wake
    cdef readonly Progress progress
    cdef QuorumFlag _quorum
    cdef Lock _lock
    cdef list _proposals

    cpdef object queue(self, Proposal proposal)
    cpdef bint withdraw(self, Proposal proposal, error) except -1

    @cython.locals(proposal=Proposal)
    cpdef Proposal next(self, double now)
    cpdef bint not_sent(self, Proposal proposal) except -1
    cpdef object sent(self, Proposal proposal)
    cpdef object drop(self, Proposal proposal)
    cpdef list clear(self)
    cpdef bint may_send(self, double now) except -1
    cdef bint _remove(self, Proposal proposal) except -1
