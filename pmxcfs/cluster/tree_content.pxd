# cython: language_level=3
# The types of tree_content.py, which delivers every change.
cimport cython

from pmxcfs.cluster.tree_source cimport Proposals
from pmxcfs.replica.outbox cimport Outbox, Proposal
from pmxcfs.replica.tickets cimport Ticket


cdef class TreeContent:
    cdef object _replica  # a Replica, or a stand-in
    cdef object _incomplete
    cdef bint _must_lead
    cdef object _nodes
    cdef object _clock
    cdef Outbox _outbox
    cdef Proposals _proposals
    cdef object _lock
    cdef object _quorum
    cdef object _lock_has_expired
    cdef object _when_synced
    cdef object _me
    cdef object _members

    @cython.locals(proposal=Proposal)
    cdef Proposal _take_own(self, serial)

    @cython.locals(ticket=Ticket, proposal=Proposal)
    cdef object _deliver(self, list tickets, list proposals)
    cdef object _on_unlock_request(self, request, Proposal proposal)


@cython.locals(asked=Ticket)
cdef Ticket _ticket_of(sender, message, Proposal proposal)
