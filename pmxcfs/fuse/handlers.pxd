# cython: language_level=3
# C types of handlers.py, whose code runs for every request.
from pmxcfs._core cimport Entry
from pmxcfs.vfs.filesystem cimport FileSystem
from pmxcfs.vfs.writeback cimport Writeback
from pmxcfs.fuse.node_ids cimport NodeIds


cdef class Handlers:
    cdef public bint is_logging_requests
    cdef readonly NodeIds node_ids
    cdef readonly object requests
    cdef FileSystem _files
    cdef Writeback _writeback
    cdef object _ownership
    cdef object _callers
    cdef object _on_debug
    cdef dict _status_files
    cdef dict _fixed
    cdef object _start_ns
    cdef object _now_ns
    cdef readonly object _workers
    cdef object _taken
    cdef dict _handles
    cdef dict _directories
    cdef dict _recent_listings
    cdef object _last_handle
    cdef object _absent

    cdef object _caller(self, context)
    cdef object _special(self, parent, str name)
    cdef Entry _directory(self, node)
    cdef list _listing(self, Entry directory)
    cdef Entry _find(self, parent, str name)
    cdef object _answer(self, found)
    cdef object _attributes(self, found)
    cdef object _mode_of(self, found)
    cdef object _entry_attributes(self, Entry entry)
    cdef object _new_attributes(self, node, mode, size, time_ns)
    cdef object _dirent(self, Entry entry)
    cdef object _special_dirent(self, str name)
    cdef object _new_handle(self, handle)
    cdef object _open(self, Entry entry, flags, caller, has_created)
