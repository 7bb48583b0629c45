# cython: language_level=3
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from pmxcfs._content cimport Draft


cdef class Entry:
    cdef readonly uint64_t inode
    cdef readonly uint64_t version
    cdef public uint64_t node
    cdef readonly uint64_t listing_version  # of a directory: counts its names that come and go
    cdef readonly uint32_t writer
    cdef readonly uint32_t mtime
    cdef readonly uint8_t type
    cdef readonly bint private
    cdef readonly bint is_orphan  # removed, but still open; nothing of it is ever published again
    cdef readonly str name
    cdef readonly Entry parent
    cdef dict _children  # name -> Entry; None until there is one
    cdef bytes _data  # published; shorter than _size (empty) only where no bytes are known
    cdef Py_ssize_t _size
    cdef Draft _draft
    cdef str _last_path  # None while attached
    cdef bytes _line  # its part of the index; None until asked for, or when that changes

    cpdef Entry child(self, str name)
    cdef bint is_sparse(self) noexcept
    cdef tuple state(self)
    cdef int restore(self, tuple state) except -1
    cdef int stamp(self, uint64_t version, uint32_t writer, uint32_t mtime) except -1
    cdef bytes meta(self)
    cdef bytes line(self)


cdef class Tree:
    cdef readonly Entry root
    cdef readonly int64_t content_bytes
    cdef readonly int64_t unpublished_growth
    cdef bint _keep_undo
    cdef dict _table  # inode -> Entry, the root included
    cdef dict _found  # path, however spelled -> the attached Entry there
    cdef dict _touched  # Entry -> its state at the last mark_saved (None without undo); in that order
    cdef dict _dirty  # Entry -> None, those with dirty bytes in the order they became so

    cpdef Entry find(self, str path)
    cpdef tuple find_parent(self, str path)
    cpdef object mark_saved(self)
    cpdef object take_unpublished(self, Entry entry)
    cpdef object put_back_unpublished(self, Entry entry, int64_t now_ns)
    cpdef object finish_unpublished(self, Entry entry)
    cpdef object discard_unpublished(self, Entry entry)
    cpdef object orphan(self, Entry entry)
    cdef Entry admit(self, record)
    cdef int settle_positions(self, Py_ssize_t expected) except -1
    cdef Entry walk(self, list names)
    cdef int sign(self, Entry entry, uint32_t writer, uint32_t mtime) except -1
    cdef int advance(self, uint32_t writer, uint32_t mtime) except -1
    cdef int touched(self, Entry entry) except -1
    cdef int attach(self, Entry entry, Entry parent, str name) except -1
    cdef int link(self, Entry entry, Entry parent, str name) except -1
    cdef int detach(self, Entry entry) except -1
    cdef int check_attached(self, Entry entry) except -1
    cdef int check_leaf(self, Entry entry) except -1
    cdef int check_free(self, Entry parent, str name) except -1
    cdef int check_file(self, Entry entry) except -1
    cdef Draft draft_of(self, Entry entry)
    cdef int note_dirty(self, Entry entry, int64_t now_ns) except -1
    cdef int follow(self, Entry entry) except -1
    cdef int weigh(self, Entry entry) except -1


cdef Entry new_entry(uint64_t inode, uint8_t type)
cdef bint is_private_place(Entry parent, str name) except -1
