# cython: language_level=3
# The types of filesystem.py, which runs for every request that changes something.
cimport cython

from pmxcfs._core cimport Entry, Tree
from pmxcfs.tree.apply cimport Change
from pmxcfs.replica.tickets cimport Ticket


cdef class OpenFile:
    cdef readonly Entry entry
    cdef public Ticket flight
    cdef public bint append
    cdef public bint has_created
    cdef public bint has_written
    cdef public bint has_truncated
    cdef public bint had_written
    cdef public bint had_truncated


cdef class FileSystem:
    cdef public bint quorate
    cdef public object publish_after_ns
    cdef readonly object gid
    cdef Tree _tree
    cdef object _issuer
    cdef object _locks
    cdef object _now_ns
    cdef public object on_unpublished
    cdef public object on_displaced
    cdef dict _flights
    cdef dict _writers
    cdef object _oldest_creation_ns

    cpdef object remove(self, Entry entry)
    cpdef object save_creations(self)
    cpdef object publish(self, Entry entry)
    cpdef object release(self, OpenFile handle)

    @cython.locals(flight=Ticket)
    cpdef object flush(self, OpenFile handle)

    @cython.locals(entry=Entry)
    cpdef object write(self, OpenFile handle, offset, bytes data)
    cpdef object sync(self)
    cdef str _new_path(self, Entry parent, str name)
    cdef object _need_quorum(self)
    cdef object _check_size(self, Entry entry, end)

    @cython.locals(flight=Ticket)
    cdef object _check_unbroken(self, OpenFile handle)
    cdef object _forget_writer(self, OpenFile handle)

    @cython.locals(flight=Ticket)
    cdef object _await_flight(self, Entry entry, double seconds)
    cdef object _publish(self, Entry entry, Ticket flight)
    cdef object _put_back(self, Entry entry, Ticket flight)
    cdef object _land(self, Entry entry, Ticket flight)
    cdef object _board(self, Entry entry, Ticket flight)
    cdef object _drop(self, Entry entry, Ticket flight)
    cdef object _publish_behind(self, Entry entry)
    cdef object _save_creations_behind(self)
    cdef object _note_lock(self, Change change)


cdef object _check_name(str name)
cdef object _check_current(Entry entry)
cdef str _path(Entry entry)
cdef object _check_empty(Entry entry)
cdef object _refuse_guest_name(str path)
cdef object _board(OpenFile handle, Ticket flight)
cdef str _join(str directory, str name)
