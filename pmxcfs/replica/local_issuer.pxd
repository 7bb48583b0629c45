# cython: language_level=3
# The types of local_issuer.py, which runs for every change.
cimport cython

from pmxcfs.tree.apply cimport Change
from pmxcfs.replica.replica cimport Replica
from pmxcfs.replica.tickets cimport Ticket, timeout_for


cdef class LocalIssuer:
    cdef Replica _replica
    cdef object _clock
    cdef object _yielding
    cdef list _queue
    cdef _Hold _hold

    cpdef Change submit(self, mutation)
    cpdef Change carry_out(self, Ticket ticket)
    cpdef object wait(self, Ticket ticket, double seconds)
    cpdef Change create(self, mutation, caller=*)
    cpdef object refusal(self, size=*)
    cpdef object save(self)
    cdef object _wait_at_gate(self, Ticket ticket)
    cdef object _check(self, Ticket ticket)
    cdef object _deliver_queue(self, Ticket ticket, double seconds)

    @cython.locals(ticket=Ticket)
    cdef object _deliver(self, list group)
    cdef bint _take_back(self, Ticket ticket, error) except -1
    cdef object _await(self, Ticket ticket)


cdef class _Hold:
    cdef readonly bint is_closed
    cdef bint _is_refusing
    cdef object _changed
