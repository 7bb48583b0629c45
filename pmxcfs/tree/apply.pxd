# cython: language_level=3
# Types for apply.py, which runs for every change.
from libc.stdint cimport uint32_t

from pmxcfs._core cimport Entry, Tree
from pmxcfs.tree.guests cimport Guests, parse_guest_path


cdef class Change:
    cdef readonly object kind
    cdef readonly str path
    cdef public Entry entry
    cdef readonly str source
    cdef readonly Entry replaced
    cdef readonly Entry source_directory
    cdef readonly Entry directory
    cdef readonly bint has_new_time


cpdef Change apply(Tree tree, Guests guests, mutation, uint32_t writer, uint32_t mtime)
cdef Change _write(Tree tree, Guests guests, object mutation, uint32_t writer, uint32_t mtime)
cdef Change _create(Tree tree, Guests guests, object mutation, uint32_t writer, uint32_t mtime)
cdef Change _mkdir(Tree tree, object mutation, uint32_t writer, uint32_t mtime)
cdef Change _delete(Tree tree, Guests guests, object mutation, uint32_t writer, uint32_t mtime)
cdef Change _rename(Tree tree, Guests guests, object mutation, uint32_t writer, uint32_t mtime)
cdef object _half_renamed(Tree tree, object mutation, Entry target)
cdef Change _set_mtime(Tree tree, object mutation, uint32_t writer, uint32_t mtime)
cdef Change _unlock(Tree tree, object mutation, uint32_t writer, uint32_t mtime)
cdef Entry _existing(Tree tree, str path)
cdef tuple _parent_of(Tree tree, str path)
cdef tuple _place_for(Tree tree, str path)
cdef object _check_empty(Entry entry)
cdef object _check_movable(Tree tree, Entry entry, Entry parent)
cdef bint _is_below_locks(str path) except -1
cdef bint _is_lock(Entry entry) except -1
cdef object _check_guest(Guests guests, str path, str source=*)
cdef object _register(Guests guests, object guest)
cdef object _move_registration(Guests guests, str source, object guest)
