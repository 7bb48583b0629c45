# cython: language_level=3
# The types of replica.py, which runs for every change.
cimport cython
from libc.stdint cimport uint64_t

from pmxcfs._core cimport Tree
from pmxcfs.replica.batches cimport Batches
from pmxcfs.replica.change_log cimport ChangeLog
from pmxcfs.replica.recording cimport (
    Applied, can_be_staged, is_configuration, records_of, size_of)
from pmxcfs.replica.tickets cimport Ticket, timeout_for
from pmxcfs.replica.turn cimport Turn
from pmxcfs.text cimport to_bytes
from pmxcfs.tree.apply cimport Change, apply
from pmxcfs.tree.guests cimport Guests


cdef class Replica:
    cdef readonly Tree tree
    cdef readonly Guests guests
    cdef public object policy
    cdef readonly object departures
    cdef readonly object saver
    cdef readonly object sync_if_due
    cdef readonly uint64_t writes
    cdef ChangeLog _log
    cdef Batches _batches
    cdef object _database
    cdef object _yielding
    cdef object _on_pending
    cdef object _wall_clock_ns
    cdef Turn _turn
    cdef bint _has_configuration
    cdef list _on_applied
    cdef list _on_change
    cdef list _on_undone
    cdef list _on_reload

    @cython.locals(ticket=Ticket)
    cpdef object deliver(self, tickets)
    cpdef object defer(self, Ticket ticket)
    cpdef object flush(self)
    cpdef object check_writable(self, size=*, double seconds=*)
    cpdef bint is_ready(self, tickets) except -1
    cpdef object await_ready(self, tickets, double seconds)

    @cython.locals(ticket=Ticket)
    cdef list _deliver_locally(self, tickets)
    cdef object _undo(self, error)
    cdef object _await_room(self, Py_ssize_t size, double seconds)
    cpdef object await_saver(self)
    cpdef object save_notes(self)
    cdef object _write(self, double seconds)
    cdef object _deliver_deferred(self)

    @cython.locals(ticket=Ticket, size=Py_ssize_t)
    cdef Py_ssize_t _size_of(self, tickets) except -1

    @cython.locals(ticket=Ticket, done=list)
    cdef list _apply(self, tickets)

    @cython.locals(applied=Applied, change=Change)
    cdef object _note_removals(self, list done)
    cdef object _record(self, list done)

    cdef object _mark_written(self, list done)
    cpdef object _keep(self)

    @cython.locals(ticket=Ticket, seconds=double)
    cdef double _shortest(self, tickets) except? -1
    cdef object _record_for_good(self, list done)
    cdef object _roll_back(self, error)

    @cython.locals(applied=Applied)
    cdef object _announce(self, list done)
