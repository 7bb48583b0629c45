# cython: language_level=3
# C types of handlers.py, whose code runs for every request.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from pmxcfs._core cimport Entry
from pmxcfs.fuse.attributes cimport Attributes, Requester, Statistics, Wanted
from pmxcfs.fuse.node_ids cimport NodeIds
from pmxcfs.host.callers cimport Callers
from pmxcfs.text cimport to_bytes, to_text
from pmxcfs.tree.modes cimport mode_of, without_quorum
from pmxcfs.vfs.filesystem cimport FileSystem
from pmxcfs.vfs.pending cimport PendingFiles
from pmxcfs.vfs.writeback cimport Writeback


cdef class Handlers:
    cdef public bint is_logging_requests
    cdef readonly NodeIds node_ids
    cdef readonly object requests
    cdef FileSystem _files
    cdef Writeback _writeback
    cdef PendingFiles _pending
    cdef dict _pending_files
    cdef object _ownership
    cdef Callers _callers
    cdef object _on_debug
    cdef dict _status_files
    cdef dict _fixed
    cdef int64_t _start_time
    cdef object _now_ns
    cdef object _taken
    cdef dict _handles
    cdef dict _directories
    cdef dict _recent_listings
    cdef uint64_t _last_handle
    cdef Attributes _absent

    cpdef int errno_of(self, str name, error) except -1
    cpdef object call(self, str name, tuple arguments, requester=*)
    cpdef Attributes lookup(self, uint64_t parent, bytes raw_name)
    cpdef object forget(self, uint64_t node, uint64_t count)
    cpdef Attributes getattr(self, uint64_t node)
    cpdef bytes readlink(self, uint64_t node)
    cpdef Statistics statfs(self)
    cpdef uint64_t opendir(self, uint64_t node) except 0
    cpdef list readdir(self, uint64_t handle, uint64_t offset)
    cpdef Attributes listed(self, uint64_t handle, bytes raw_name, found)
    cpdef object releasedir(self, uint64_t handle)
    cpdef object fsyncdir(self, uint64_t handle)
    cpdef tuple create(
        self, uint64_t parent, bytes name, uint32_t mode, uint32_t flags, Requester requester)
    cpdef Attributes mknod(
        self, uint64_t parent, bytes name, uint32_t mode, uint32_t device, Requester requester)
    cpdef Attributes mkdir(
        self, uint64_t parent, bytes raw_name, uint32_t mode, Requester requester)
    cpdef object unlink(self, uint64_t parent, bytes name, Requester requester)
    cpdef object rmdir(self, uint64_t parent, bytes name, Requester requester)
    cpdef object rename(
        self, uint64_t parent, bytes raw_name, uint64_t new_parent, bytes raw_new_name,
        Requester requester, exclusive=*)
    cpdef object link(self, uint64_t node, uint64_t new_parent, bytes new_name)
    cpdef Attributes setattr(self, uint64_t node, Wanted wanted, handle, Requester requester)
    cpdef uint64_t open(self, uint64_t node, uint32_t flags, Requester requester) except 0
    cpdef bytes read(self, uint64_t handle, int64_t offset, Py_ssize_t size)
    cpdef Py_ssize_t write(self, uint64_t handle, int64_t offset, bytes data, append=*) except -1
    cpdef object flush(self, uint64_t handle)
    cpdef object fsync(self, uint64_t handle)
    cpdef object release(self, uint64_t handle)

    cdef object _caller(self, Requester requester)
    cdef Entry _create(
        self, uint64_t parent, str name, caller, bint exclusive, bint later)
    cdef object _special(self, uint64_t parent, str name)
    cdef Entry _directory(self, node)
    cdef list _listing(self, Entry directory)
    cdef Entry _find(self, uint64_t parent, str name)
    cdef Entry _child(self, Entry directory, str name)
    cdef Attributes _answer(self, found)
    cdef Attributes _attributes(self, found)
    cdef uint32_t _mode_of(self, found) except? 0
    cdef Attributes _entry_attributes(self, Entry entry, uint32_t mode)
    cdef tuple _listed(self, Entry entry)
    cdef tuple _listed_special(self, str name)
    cdef uint64_t _new_handle(self, handle) except 0
    cdef uint64_t _open(self, Entry entry, uint32_t flags, caller, bint has_created) except 0


cdef bint _can_be_announced_later(uint32_t flags) except -1
