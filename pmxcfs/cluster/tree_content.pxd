# cython: language_level=3
# The types of tree_content.py, which delivers every change.
from pmxcfs.replica.tickets cimport Ticket


cdef class TreeContent:
    cdef object _replica  # a Replica, or a stand-in
    cdef object _incomplete
    cdef bint _must_lead
    cdef object _nodes
    cdef object _clock
    cdef object _outbox
    cdef object _proposals
    cdef object _lock
    cdef object _quorum
    cdef object _lock_has_expired
    cdef object _when_synced
    cdef object _me
    cdef object _members

    cdef object _take_own(self, serial)
    cdef object _deliver(self, list tickets, proposals)
    cdef object _on_unlock_request(self, request, proposal)


cdef Ticket _ticket_of(sender, message, proposal)
