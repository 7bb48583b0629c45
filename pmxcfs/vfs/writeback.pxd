# cython: language_level=3
# The types of writeback.py, which runs for every close of a file that was written.
cimport cython
from libc.stdint cimport int64_t

from pmxcfs._core cimport Entry, Tree
from pmxcfs.replica.quorum cimport QuorumFlag
from pmxcfs.replica.tickets cimport Ticket
from pmxcfs.vfs.pending cimport PendingFiles


cdef class OpenFile:
    cdef readonly Entry entry
    cdef readonly object caller
    cdef public Ticket writeback
    cdef public bint append
    cdef public object append_end
    cdef public bint has_created
    cdef public bint has_written
    cdef public bint has_truncated
    cdef public bint had_written
    cdef public bint had_truncated
    cdef public object refusal


cdef class Writeback:
    cdef public object publish_after_ns
    cdef Tree _tree
    cdef object _issuer
    cdef QuorumFlag _quorum
    cdef object _now_ns
    cdef object _on_unpublished
    cdef object _on_displaced
    cdef object _on_name_gone
    cdef PendingFiles _pending
    cdef dict _pending_files
    cdef dict _running
    cdef dict _refused
    cdef dict _writers
    cdef object _oldest_creation_ns

    cpdef object add_writer(self, OpenFile handle)

    @cython.locals(writers=list)
    cpdef object note_write(self, OpenFile handle)

    @cython.locals(ticket=Ticket)
    cpdef object raise_lost_writes(self, OpenFile handle)

    cpdef object refuse(self, OpenFile handle, error)

    @cython.locals(ticket=Ticket, until_ns=int64_t)
    cpdef object flush(self, OpenFile handle)
    cdef object _await_result(self, OpenFile handle, Ticket ticket, until_ns)
    cpdef object release(self, OpenFile handle)
    cdef object _forget_writer(self, OpenFile handle)
    cpdef object note_creation(self)
    cpdef object save_creations(self)
    cpdef object sync(self)
    cpdef object publish(self, Entry entry, int64_t until_ns, caller=*)
    cpdef object publish_for_another(self, Entry entry, int64_t until_ns, int64_t limit_ns=*)
    cpdef int64_t after(self, double seconds) except? -1
    cpdef double remaining(self, int64_t until_ns) except? -1

    @cython.locals(ticket=Ticket)
    cpdef object await_end(self, Entry entry, int64_t until_ns)
    cdef object _publish(self, Entry entry, Ticket ticket, caller)

    @cython.locals(handle=OpenFile)
    cdef object _begin(self, Entry entry, Ticket ticket)
    cdef object _end(self, Entry entry, Ticket ticket)
    cdef object _redirty(self, Entry entry, Ticket ticket)
    cdef object _drop(self, Entry entry, error)
    cdef object _discard(self, Entry entry, Ticket ticket, warning=*)

    @cython.locals(handle=OpenFile)
    cdef object _give_up(self, Entry entry, Ticket ticket)
    cdef object _announce(self, Entry entry, Ticket ticket)
    cdef object _announce_by_time(self, Entry entry)
    cdef object _publish_quietly(self, Entry entry)
    cdef object _save_creations_quietly(self)


cdef object _track_handle(OpenFile handle, Ticket ticket)
cdef object _raise_refusal(OpenFile handle)
