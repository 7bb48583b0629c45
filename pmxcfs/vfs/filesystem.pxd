# cython: language_level=3
# The types of filesystem.py, which runs for every request that changes something.
cimport cython

from pmxcfs._core cimport Entry, Tree
from pmxcfs.replica.quorum cimport QuorumFlag
from pmxcfs.replica.tickets cimport Ticket
from pmxcfs.text cimport to_bytes
from pmxcfs.tree.apply cimport Change
from pmxcfs.tree.guests cimport parse_guest_path
from pmxcfs.vfs.pending cimport PendingFiles, is_dead
from pmxcfs.vfs.space cimport Space
from pmxcfs.vfs.writeback cimport OpenFile, Writeback


cdef class FileSystem:
    cdef readonly QuorumFlag quorum
    cdef readonly Space space
    cdef readonly Writeback writeback
    cdef readonly PendingFiles pending
    cdef dict _pending_files
    cdef Tree _tree
    cdef object _issuer
    cdef object _locks
    cdef object _now_ns
    cdef object _wall_clock
    cdef object _on_unpublished
    cdef object _on_displaced

    cpdef Entry create(
        self, Entry parent, str name, bint exclusive, bint later=*, caller=*)
    cpdef Entry mkdir(self, Entry parent, str name, caller=*)
    cpdef object rename(
        self, Entry entry, Entry parent, str name, bint exclusive=*, caller=*)
    cdef bint _can_be_pending(self, Entry parent, str name, str path) except -1
    cpdef object unlink(self, Entry entry, caller=*)
    cpdef object rmdir(self, Entry entry, caller=*)
    cdef object _remove(self, Entry entry, caller, bint is_directory)
    cpdef object _type_error(self, str path, bint is_directory)
    cdef bint _remove_pending(self, Entry entry, bint is_directory) except -1

    cpdef OpenFile open(
        self,
        Entry entry,
        bint writing,
        bint truncate,
        bint append=*,
        bint has_created=*,
        caller=*,
    )

    @cython.locals(entry=Entry)
    cpdef object write(self, OpenFile handle, offset, bytes data, append=*)
    cdef str _new_path(self, Entry parent, str name)
    cdef object _need_quorum(self)
    cdef object _check_empty(self, Entry entry)

    @cython.locals(needed=Py_ssize_t)
    cdef object _need_issuer(self, Entry entry, Py_ssize_t size=*)
    cdef object _need_issuer_to_write(self, OpenFile handle, Py_ssize_t size=*)
    cdef object _check_size(self, OpenFile handle, end)
    cpdef object release(self, OpenFile handle)
    cdef object _note_lock(self, Change change)
    cdef object _note_own(self, Change change)


cdef object _mutation(kind, str path)
cdef object _check_name(str name)
cdef object _check_current(Entry entry)
cdef bint _is_of_mapping(OpenFile handle, offset) except -1
cdef str _path(Entry entry)
cdef object _check_move(str source, str target)
cdef object _refuse_guest_name(str path)
cdef str _join(str directory, str name)
