# cython: language_level=3
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from pmxcfs._content cimport Draft


cdef class Entry:
    cdef readonly uint64_t inode
    cdef readonly uint64_t version
    cdef public uint64_t node
    cdef public int64_t kernel_size  # of a file: the size that the kernel has
    cdef readonly uint64_t listing_version  # of a directory: counts added and removed names
    cdef readonly uint32_t writer
    cdef readonly uint32_t mtime
    cdef readonly uint8_t type
    cdef readonly bint is_directory
    cdef readonly bint private
    cdef readonly bint is_orphan  # removed while open; never published again
    cdef readonly str name
    cdef readonly Entry parent
    cdef dict _children  # name -> Entry; None until there is one
    cdef bytes _data  # published; empty if sparse (only the size is known)
    cdef readonly Py_ssize_t size  # published
    cdef Draft _draft
    cdef str _path  # the last one once it is detached; None until it was asked for
    cdef uint64_t _segment  # of the journal, in which it was last changed; 0: none
    cdef public bint has_row  # whether that segment tells all that the entry held since then
    cdef bytes _index_line  # cached; None if not computed since the last change

    cpdef Entry child(self, str name)
    cdef str full_path(self)
    cdef bint is_sparse(self) noexcept
    cdef tuple state(self)
    cdef int restore(self, tuple state) except -1
    cdef int stamp(self, uint64_t version, uint32_t writer, uint32_t mtime) except -1
    cdef bytes meta(self)
    cdef bytes index_line(self)


cdef class Tree:
    cdef readonly Entry root
    cdef readonly int64_t content_bytes
    cdef readonly int64_t unpublished_growth
    cdef bint _keep_undo
    cdef dict _table  # inode -> Entry, the root included
    cdef dict _path_cache  # path -> attached Entry, of paths that find() was asked for
    cdef dict _touched  # changed Entry -> its state at the last mark_written (None without undo)
    cdef dict _dirty  # Entry -> None, in the order in which they became dirty

    cpdef Entry find(self, str path)
    cpdef tuple find_parent(self, str path)
    cpdef Entry create(
        self, Entry parent, str name, uint8_t type, uint32_t writer, uint32_t mtime
    )
    cpdef object write(
        self, Entry entry, offset, bytes data, bint truncate, uint32_t writer, uint32_t mtime
    )
    cpdef Entry rename(
        self, Entry entry, Entry parent, str name, uint32_t writer, uint32_t mtime
    )
    cpdef object remove(self, Entry entry, uint32_t writer, uint32_t mtime)
    cpdef object touch(self, Entry entry, uint32_t writer, uint32_t mtime)
    cpdef object write_unpublished(self, Entry entry, offset, bytes data, int64_t now_ns)
    cpdef object truncate_unpublished(
        self, Entry entry, size, int64_t now_ns, bint opening=*
    )
    cpdef object add_changed(self, dict inodes)
    cpdef object mark_written(self)
    cpdef list rows_before(self, uint64_t segment, Py_ssize_t large)
    cpdef object take_unpublished(self, Entry entry)
    cpdef object redirty_unpublished(self, Entry entry, int64_t now_ns)
    cpdef object finish_unpublished(self, Entry entry)
    cpdef object discard_unpublished(self, Entry entry)
    cpdef object orphan(self, Entry entry)
    cdef Entry add_record(self, record)
    cdef int set_private_flags(self, Py_ssize_t expected) except -1
    cdef int remember(self, Entry entry) except -1
    cdef Entry walk(self, list names)
    cdef int begin_mutation(self, Entry entry, uint32_t writer, uint32_t mtime) except -1
    cdef int raise_version(self, uint32_t writer, uint32_t mtime) except -1
    cdef int note_touched(self, Entry entry) except -1
    cdef int attach(self, Entry entry, Entry parent, str name) except -1
    cdef int link(self, Entry entry, Entry parent, str name) except -1
    cdef int detach(self, Entry entry) except -1
    cdef int check_attached(self, Entry entry) except -1
    cdef int check_leaf(self, Entry entry) except -1
    cdef int check_free(self, Entry parent, str name) except -1
    cdef Draft draft_of(self, Entry entry)
    cdef int note_dirty(self, Entry entry, int64_t now_ns) except -1
    cdef int rebase_draft(self, Entry entry) except -1
    cdef int update_growth(self, Entry entry) except -1


cdef Entry new_entry(uint64_t inode, uint8_t type)
cdef bint is_private_place(Entry parent, str name) except -1
