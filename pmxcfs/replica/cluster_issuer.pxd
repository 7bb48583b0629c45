# cython: language_level=3
# The types of cluster_issuer.py, which runs for every change in a cluster.
cimport cython

from pmxcfs.replica.outbox cimport Outbox, Proposal
from pmxcfs.replica.progress cimport Progress
from pmxcfs.replica.tickets cimport Signal, Ticket, limit_for, timeout_for
from pmxcfs.replica.waiting cimport Interruption, RequestWatch
from pmxcfs.text cimport to_bytes
from pmxcfs.tree.apply cimport Change


cdef class ClusterIssuer:
    cdef object _replica
    cdef Outbox _outbox
    cdef Progress _progress
    cdef object _yielding
    cdef object _dispatch_until
    cdef double _stops_at
    cdef dict _waiting

    cpdef Change submit(self, mutation)
    cpdef object refusal(self, Py_ssize_t size=*)
    cdef object _refusal(self, Py_ssize_t size, double seconds)
    cpdef Change create(self, mutation, caller=*)
    cpdef bint can_announce_later(self) except -1
    cpdef object announce(self, Ticket ticket)
    cpdef Change carry_out(self, Ticket ticket)

    @cython.locals(until=double)
    cpdef object wait(self, Ticket ticket, double seconds)
    cdef Change _propose(self, Ticket ticket, list bodies)

    @cython.locals(start=double, proposal=Proposal, interruption=Interruption)
    cdef object _carry(self, Ticket ticket, list bodies)

    @cython.locals(ticket=Ticket, watch=RequestWatch, seconds=double)
    cdef object _send_and_wait(self, Proposal proposal, double start)

    @cython.locals(
        ticket=Ticket, done=Signal, start=double, timeout=double, until=double, left=double,
        now=double)
    cdef object _await(self, Proposal proposal, RequestWatch watch)

    @cython.locals(now=double, oldest=double)
    cdef double _unsent_seconds(self, Proposal proposal, double until) except? -1

    @cython.locals(now=double)
    cdef object _note_failure(self, error)
    cdef object _refuse_unsent(self, str reason)
    cpdef object _answer_signaled(self, Proposal proposal)
    cdef object _withdraw(self, Proposal proposal, error)

    @cython.locals(now=double, seconds=double)
    cdef object _give_up(self, Proposal proposal, str reason)
    cdef double _limited(self, double seconds, double now) except? -1


cdef object _unwritten()


@cython.locals(room=Py_ssize_t)
cpdef list split(mutation)
