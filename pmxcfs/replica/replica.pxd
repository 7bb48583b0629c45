# cython: language_level=3
# The types of replica.py, which runs for every change.
cimport cython

from pmxcfs._core cimport Tree
from pmxcfs.tree.apply cimport Change
from pmxcfs.tree.guests cimport Guests
from pmxcfs.replica.tickets cimport Ticket


cdef class Replica:
    cdef readonly Tree tree
    cdef readonly Guests guests
    cdef public object policy
    cdef readonly object departures
    cdef list _on_change
    cdef list _on_undone
    cdef list _on_reload
    cdef readonly unsigned long long transactions
    cdef object _yielding
    cdef object _saving
    cdef object _database

    cpdef object deliver(self, tickets)
    cpdef object defer(self, Ticket ticket)
    cpdef object await_save(self)
    cpdef object save(self)

    @cython.locals(ticket=Ticket, done=list)
    cdef list _apply(self, tickets)

    @cython.locals(ticket=Ticket)
    cdef bint _save(self, tickets) except -1
    cdef object _write(self)
    cdef object _save_all(self)
    cdef object _save_long(self, list removals)
    cdef object _write_notes(self)
    cdef object _apply_policy(self, error)
    cdef object _roll_back(self, error)
    cdef object _announce(self, list done)
