# cython: language_level=3, auto_pickle=False, autotestdict=False
"""The inode table: entries with their published content and their unpublished writes.

``Tree`` is the configuration tree at one version: one ``Entry`` per inode, a dict of children per
directory, and running totals. It knows nothing of quorum, limits, guests or locks. The caller
decides what is allowed; the tree refuses only what it can't represent (ValueError, OverflowError).
Content has two layers. The *published* content is in the database, on other nodes and in checksums.
A ``Draft`` adds the unpublished (dirty) writes of this node; readers on this node see the draft.

Threads: each method is atomic under the GIL, but ``checksum`` and ``index`` may release it while
they hash. The caller holds the tree's lock across calls that belong together. No clock.
Invariants: a detached directory is empty; the table has an inode exactly while its entry is
attached; ``private`` follows from the path; the root has inode 0.
Contract: docs/spec/storage.md, "Versions" and "Checksums and index".
"""

import hashlib
import struct

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from pmxcfs._content cimport Draft, as_size, end_of, splice

from pmxcfs.errors import Failed
from pmxcfs.messages import EntryType
from pmxcfs.text import to_bytes, to_text

cdef uint8_t DIRECTORY = EntryType.DIRECTORY
cdef uint8_t FILE = EntryType.FILE
cdef uint64_t LAST_VERSION = 0xFFFFFFFFFFFFFFFF
cdef Py_ssize_t PATH_CACHE_LIMIT = 4096  # entries of the cache of path lookups

# Layouts of docs/spec/storage.md, "Checksums and index".
_INODE = struct.Struct("<Q")
_META = struct.Struct("<QIIIBQ")  # version, writer, mtime, size, type, parent
_INDEX_HEADER = struct.Struct("<QQIIII")  # version, last inode, writer, mtime, count, total bytes
_INDEX_ENTRY_SIZE = 40  # inode and digest


@cython.final
cdef class Entry:
    """One inode: a file or a directory."""

    def __cinit__(self):
        self.name = ""
        self._data = b""

    def __repr__(self):
        return f"<Entry {self.inode} {self.path!r}>"

    @property
    def is_attached(self):
        return self.parent is not None or self.inode == 0

    @property
    def path(self):
        return self.full_path()

    cdef str full_path(self):
        """Return the path, which is kept: only an entry without children is ever moved."""
        cdef str above
        if self._path is None:
            if self.parent is None:
                return ""
            above = self.parent.full_path()
            self._path = f"{above}/{self.name}" if above else self.name
        return self._path

    @property
    def content(self):
        return bytes(self.size) if self.is_sparse() else self._data

    @property
    def stored(self):
        return None if self.type == DIRECTORY or self.is_sparse() else self._data

    @property
    def child_count(self):
        return 0 if self._children is None else len(self._children)

    cpdef Entry child(self, str name):
        return None if self._children is None else self._children.get(name)

    def children(self):
        return [] if self._children is None else list(self._children.values())

    @property
    def has_draft(self):
        return self._draft is not None

    @property
    def has_unpublished(self):
        return self._draft is not None and self._draft.is_dirty() and not self.is_orphan

    @property
    def unpublished_since_ns(self):
        return 0 if self._draft is None else self._draft.since_ns

    @property
    def visible_size(self):
        return self.size if self._draft is None else len(self._draft.buffer)

    def read(self, offset, size):
        cdef Py_ssize_t start = as_size(offset)
        cdef Py_ssize_t stop = start + as_size(size)
        if self._draft is not None:
            return self._draft.read(start, stop)
        cdef bytes content = self.content
        return content if start == 0 and stop >= len(content) else content[start:stop]

    cdef bint is_sparse(self) noexcept:
        return self.size > 0 and len(self._data) == 0

    cdef tuple state(self):
        """Return the undo state of this entry, for ``Tree.rollback`` and ``Tree.rows_before``."""
        stamp = self.version, self.writer, self.mtime
        return self.parent, self.name, stamp, self._data, self.size, self.private

    cdef int restore(self, tuple state) except -1:
        """Restore everything in *state* but the parent and the name."""
        _, _, stamp, self._data, self.size, self.private = state
        self._segment = 0
        return self.stamp(stamp[0], stamp[1], stamp[2])

    cdef int stamp(self, uint64_t version, uint32_t writer, uint32_t mtime) except -1:
        self.version = version
        self.writer = writer
        self.mtime = mtime
        self._index_line = None
        return 0

    cdef bytes meta(self):
        """Return the bytes of this entry that a checksum covers, without inode and content."""
        parent = 0 if self.parent is None else self.parent.inode
        fields = _META.pack(self.version, self.writer, self.mtime, self.size, self.type, parent)
        return fields + to_bytes(self.name)

    cdef bytes index_line(self):
        """Return this entry's part of the index: inode and digest. Cached until it changes."""
        if self._index_line is None:
            self._index_line = _INODE.pack(self.inode) + digest_of(self, False)
        return self._index_line


cdef Entry new_entry(uint64_t inode, uint8_t type):
    cdef Entry entry = Entry.__new__(Entry)
    entry.inode = inode
    entry.type = type
    entry.is_directory = type == DIRECTORY
    return entry


cdef int check_file(Entry entry) except -1:
    if entry.type != FILE:
        raise ValueError(f"{entry!r} is not a file")
    return 0


cdef bint is_private_place(Entry parent, str name) except -1:
    """Tell whether *name* in *parent* is ``priv`` or ``nodes/NAME/priv``, or below one of them."""
    if parent.private:
        return True
    if name != "priv":
        return False
    if parent.inode == 0:
        return True
    cdef Entry above = parent.parent
    return above.name == "nodes" and above.parent is not None and above.parent.inode == 0


@cython.final
cdef class Tree:
    """The inode table."""

    def __cinit__(self, *, bint keep_undo=True):
        self.root = new_entry(0, DIRECTORY)
        self.root.version = 1
        self._keep_undo = keep_undo
        self._table = {0: self.root}
        self._path_cache = {}
        self._touched = {}
        self._dirty = {}

    @property
    def version(self):
        return self.root.version

    @property
    def entry_count(self):
        return len(self._table) - 1

    def load(self, records):
        """Fill an empty tree from *records* in any order; after a ValueError it is unusable."""
        if len(self._table) > 1 or self._touched:
            raise ValueError("records can be loaded only into an empty tree")
        cdef Entry entry, parent
        cdef list entries = [], parents = []
        for record in records:
            if record.inode == 0:
                self.root.stamp(record.version, record.writer, record.mtime)
            else:
                entries.append(self.add_record(record))
                parents.append(record.parent)
        for entry, inode in zip(entries, parents):
            parent = self._table.get(inode)
            if parent is None:
                raise ValueError(f"inode {entry.inode} has a missing parent {inode}")
            self.check_free(parent, entry.name)
            self.link(entry, parent, entry.name)
        self.set_private_flags(len(entries))

    cdef Entry add_record(self, record):
        """Add a record's entry to the table, named but not yet linked to its parent."""
        if record.inode in self._table:
            raise ValueError(f"inode {record.inode} appears twice")
        if record.type != DIRECTORY and record.type != FILE:
            raise ValueError(f"inode {record.inode} has unknown type {record.type}")
        cdef Entry entry = new_entry(record.inode, record.type)
        entry.stamp(record.version, record.writer, record.mtime)
        entry.name = to_text(record.name)
        if record.data:
            entry._data = record.data
            entry.size = as_size(len(record.data))
        if entry.type == DIRECTORY and entry.size:
            raise ValueError(f"inode {record.inode} is a directory with data")
        self._table[record.inode] = entry
        return entry

    cdef int set_private_flags(self, Py_ssize_t expected) except -1:
        """Set ``private`` from the root down and check that *expected* entries are reached."""
        cdef list waiting = [self.root]
        cdef Py_ssize_t reached = -1
        cdef Entry entry
        while waiting:
            entry = waiting.pop()
            reached += 1
            if entry.parent is not None:
                entry.private = is_private_place(entry.parent, entry.name)
            waiting.extend(entry.children())
        if reached != expected:
            raise ValueError(f"{expected - reached} entries are in or below a directory cycle")
        return 0

    cpdef Entry find(self, str path):
        """Return the entry at *path*, or None. Empty path components are ignored."""
        cdef Entry entry = self._path_cache.get(path)
        if entry is None:
            entry = self.walk(path.split("/"))
            if entry is not None and entry.full_path() == path:
                self.remember(entry)
        return entry

    cdef int remember(self, Entry entry) except -1:
        """Let an attached entry be found by its path."""
        if len(self._path_cache) >= PATH_CACHE_LIMIT:
            self._path_cache.clear()
        self._path_cache[entry.full_path()] = entry
        return 0

    cpdef tuple find_parent(self, str path):
        """Return (parent entry or None, last name) of *path*; for the root (None, "")."""
        directory, _, name = (path.rstrip("/") if path.endswith("/") else path).rpartition("/")
        return (self.find(directory), name) if name else (None, "")

    cdef Entry walk(self, list names):
        """Look up *names* one after the other from the root; skip empty names."""
        cdef Entry entry = self.root
        cdef str name
        for name in names:
            if name:
                if entry._children is None:
                    return None
                entry = entry._children.get(name)
                if entry is None:
                    return None
        return entry

    def get(self, inode):
        """Return the attached entry with this inode number, or None."""
        return self._table.get(inode)

    # Published mutations.

    cpdef Entry create(self, Entry parent, str name, uint8_t type, uint32_t writer, uint32_t mtime):
        """Create an empty file or directory; its inode is the tree's new version."""
        self.check_attached(parent)
        self.check_free(parent, name)
        if type != DIRECTORY and type != FILE:
            raise ValueError(f"unknown type {type}")
        if self.root.version + 1 in self._table:
            raise Failed(f"inode {self.root.version + 1} for {name!r} is in use already")
        cdef Entry entry = new_entry(self.root.version + 1, type)
        self.begin_mutation(entry, writer, mtime)
        self.attach(entry, parent, name)
        self.remember(entry)
        return entry

    cpdef object write(
        self, Entry entry, offset, bytes data, bint truncate, uint32_t writer, uint32_t mtime
    ):
        """Write *data* at *offset* (bytes); if *truncate*, cut the file off behind *data*."""
        check_file(entry)
        self.check_attached(entry)
        cdef Py_ssize_t start = as_size(offset)
        cdef Py_ssize_t end = end_of(start, data)
        cdef bytes content
        if len(entry._data) == 0 and len(data) == 0:
            content = b""  # a size without bytes, as other nodes send it (cluster.md, "Messages")
        else:
            content = splice(entry._data, start, data, truncate)
            end = len(content)
        self.begin_mutation(entry, writer, mtime)
        self.content_bytes += end - entry.size
        entry._data = content
        entry.size = end
        self.rebase_draft(entry)

    cpdef Entry rename(self, Entry entry, Entry parent, str name, uint32_t writer, uint32_t mtime):
        """Move an entry to *name* in *parent*; return the replaced entry, detached, or None.

        A moved and a replaced directory must be empty, else ValueError.
        """
        self.check_leaf(entry)
        self.check_attached(parent)
        cdef Entry replaced = parent.child(name)
        if replaced is None:
            self.check_free(parent, name)
        else:
            self.check_leaf(replaced)
        if parent is entry or replaced is entry:
            raise ValueError(f"{entry.path!r} can't be moved onto or into itself")
        self.begin_mutation(entry, writer, mtime)
        if replaced is not None:
            self.detach(replaced)
        self.detach(entry)
        self.attach(entry, parent, name)
        self.remember(entry)
        return replaced

    cpdef object remove(self, Entry entry, uint32_t writer, uint32_t mtime):
        """Remove a file or an empty directory; only the root gets a new stamp."""
        self.check_leaf(entry)
        self.raise_version(writer, mtime)
        self.detach(entry)

    def drop(self, Entry entry not None):
        """Remove a file or an empty directory without a new version."""
        self.check_leaf(entry)
        self.detach(entry)

    cpdef object touch(self, Entry entry, uint32_t writer, uint32_t mtime):
        """Set the modification time, in seconds."""
        self.check_attached(entry)
        self.begin_mutation(entry, writer, mtime)

    cdef int begin_mutation(self, Entry entry, uint32_t writer, uint32_t mtime) except -1:
        """Begin a mutation of *entry*: raise the version, stamp entry and root."""
        self.raise_version(writer, mtime)
        self.note_touched(entry)
        entry.stamp(self.root.version, writer, mtime)
        return 0

    cdef int raise_version(self, uint32_t writer, uint32_t mtime) except -1:
        """Raise the version and stamp the root."""
        if self.root.version == LAST_VERSION:
            raise Failed("the tree has reached the highest possible version")
        self.note_touched(self.root)
        self.root.stamp(self.root.version + 1, writer, mtime)
        return 0

    cdef int note_touched(self, Entry entry) except -1:
        """Record *entry* as changed, with its undo state. Call before changing it."""
        if entry not in self._touched:
            self._touched[entry] = entry.state() if self._keep_undo else None
        return 0

    cdef int attach(self, Entry entry, Entry parent, str name) except -1:
        self.link(entry, parent, name)
        entry.private = is_private_place(parent, name)
        self._table[entry.inode] = entry
        return 0

    cdef int link(self, Entry entry, Entry parent, str name) except -1:
        """Link *entry* as *name* in *parent* and count its size; change no table, no undo."""
        if parent._children is None:
            parent._children = {}
        parent._children[name] = entry
        parent.listing_version += 1
        entry.listing_version += 1  # its ".." changes
        entry.parent = parent
        entry.name = name
        entry._path = None
        entry._index_line = None
        self.content_bytes += entry.size
        return 0

    cdef int detach(self, Entry entry) except -1:
        self.note_touched(entry)
        self._path_cache.pop(entry.full_path(), None)
        del entry.parent._children[entry.name]
        entry.parent.listing_version += 1
        del self._table[entry.inode]
        entry.parent = None
        self.content_bytes -= entry.size
        return 0

    cdef int check_attached(self, Entry entry) except -1:
        if self._table.get(entry.inode) is not entry:
            raise ValueError(f"{entry!r} is not in the tree")
        return 0

    cdef int check_leaf(self, Entry entry) except -1:
        """Check that *entry* can be detached: not the root, and without children."""
        self.check_attached(entry)
        if entry.inode == 0 or entry.child_count:
            raise ValueError(f"{entry!r} is the root or has entries")
        return 0

    cdef int check_free(self, Entry parent, str name) except -1:
        """Check that *parent* can have a new entry *name*."""
        if not parent.is_directory or not name or "/" in name or parent.child(name) is not None:
            raise ValueError(f"{name!r} can't be created in {parent!r}")
        return 0

    # Writing to the journal.

    cpdef object add_changed(self, dict inodes):
        """Add the inodes that were changed since the last mark_written to the keys of *inodes*.

        The root is left out. An entry that was made and removed since is among them.
        """
        cdef Entry entry
        for entry in self._touched:
            if entry is not self.root:
                inodes[entry.inode] = None

    cpdef object mark_written(self):
        """Note that the journal has all changes so far: drop the undo log."""
        self._touched = {}

    cpdef list rows_before(self, uint64_t segment, Py_ssize_t large):
        """Return (entry, its state before) of changed entries, unless *segment* has their row."""
        cdef Entry entry
        cdef list found = []
        for entry, state in self._touched.items():
            if entry._segment != segment:
                entry._segment, entry.has_row = segment, state[0] is None
            if not entry.has_row:
                found.append((entry, state))
                entry.has_row = len(state[3]) <= large
        return found

    def rollback(self):
        """Undo everything since the last mark_written; return {changed entry: path until now}.

        Drafts keep their dirty bytes on top of the restored content.
        """
        cdef Entry entry
        if not self._keep_undo:
            raise ValueError("this tree keeps no undo log")
        cdef dict undone = {entry: entry.path for entry in self._touched if entry is not self.root}
        for entry in self._touched:
            if entry.parent is not None:
                self.detach(entry)
        for entry, state in self._touched.items():
            entry.restore(state)
            if state[0] is not None:
                self.link(entry, state[0], state[1])
                self._table[entry.inode] = entry
            self.rebase_draft(entry)
        self.mark_written()
        return undone

    # Unpublished content.

    cpdef object write_unpublished(self, Entry entry, offset, bytes data, int64_t now_ns):
        """Write *data* at *offset* to the draft, zeros in a gap; empty *data* has no effect."""
        cdef Py_ssize_t start = as_size(offset)
        end_of(start, data)
        if data:
            self.draft_of(entry).write(start, data)
            self.note_dirty(entry, now_ns)

    cpdef object truncate_unpublished(self, Entry entry, size, int64_t now_ns, bint opening=False):
        """Cut or extend the draft to *size* bytes; unless it grows, all of it becomes dirty."""
        self.draft_of(entry).truncate(as_size(size), opening)
        self.note_dirty(entry, now_ns)

    cpdef object take_unpublished(self, Entry entry):
        """Begin a writeback: return the dirty bytes for a WRITE, or None if there are none.

        Writebacks are applied in the order taken; each ends with one of the next three methods.
        """
        if not entry.has_unpublished:
            return None
        self._dirty.pop(entry)
        return entry._draft.take()

    cpdef object redirty_unpublished(self, Entry entry, int64_t now_ns):
        """Redirty the bytes of the last writeback, whose WRITE was not sent, unless discarded."""
        if entry._draft is not None and entry._draft.in_flight:
            entry._draft.redirty(entry.is_sparse())
            self.note_dirty(entry, now_ns)

    cpdef object finish_unpublished(self, Entry entry):
        """End the oldest writeback, whose WRITE was or is now applied, unless discarded."""
        if entry._draft is not None and entry._draft.in_flight:
            entry._draft.in_flight.pop(0)
            if entry._draft.is_needed():
                self.rebase_draft(entry)
            else:
                self.discard_unpublished(entry)

    cpdef object discard_unpublished(self, Entry entry):
        """Drop the draft, dirty bytes and writebacks: readers see the published content again."""
        self._dirty.pop(entry, None)
        if entry._draft is not None:
            self.unpublished_growth -= entry._draft.growth
            entry._draft = None

    cpdef object orphan(self, Entry entry):
        """Mark an open entry as removed on this node: its dirty bytes are never published."""
        entry.is_orphan = True
        self._dirty.pop(entry, None)
        self.update_growth(entry)

    def unpublished(self):
        """Return the dirty entries, the one dirty for the longest time first."""
        return list(self._dirty)

    cdef Draft draft_of(self, Entry entry):
        """Return the file's draft; create it from the published content if there is none."""
        check_file(entry)
        if entry._draft is None:
            entry._draft = Draft.__new__(Draft)
            entry._draft.buffer.extend(entry.content)
            entry._draft.whole = entry.is_sparse()  # see Draft.rebase
        return entry._draft

    cdef int note_dirty(self, Entry entry, int64_t now_ns) except -1:
        """Record a dirty entry, since *now_ns* if it was clean, and count its growth."""
        if not entry.is_orphan and entry not in self._dirty:
            self._dirty[entry] = None
            entry._draft.since_ns = now_ns
        return self.update_growth(entry)

    cdef int rebase_draft(self, Entry entry) except -1:
        """Rebase the draft, if there is one, onto the published content."""
        if entry._draft is not None:
            entry._draft.rebase(entry.content, entry.is_sparse())
        return self.update_growth(entry)

    cdef int update_growth(self, Entry entry) except -1:
        """Count by how much the draft exceeds the published content; an orphan counts 0."""
        cdef Draft draft = entry._draft
        cdef Py_ssize_t growth
        if draft is not None:
            growth = 0 if entry.is_orphan else max(0, len(draft.buffer) - entry.size)
            self.unpublished_growth += growth - draft.growth
            draft.growth = growth
        return 0

    # Comparing with other nodes.

    def checksum(self):
        """Return the state checksum (32 bytes). Hashes the whole tree."""
        digest = hashlib.sha256()
        for inode in sorted(self._table):
            hash_entry(digest, self._table[inode], True)
        return digest.digest()

    def entry_checksum(self, Entry entry not None):
        """Return the checksum of one entry alone (32 bytes)."""
        return digest_of(entry, True)

    def index(self):
        """Return the index, which nodes compare in a round. Hashes changed entries only."""
        cdef list inodes = sorted(self._table)
        total = _INDEX_HEADER.size + _INDEX_ENTRY_SIZE * len(inodes)
        header = _INDEX_HEADER.pack(
            self.root.version, inodes[-1], self.root.writer, self.root.mtime, len(inodes), total)
        return header + b"".join([(<Entry>self._table[inode]).index_line() for inode in inodes])


cdef bytes digest_of(Entry entry, bint with_inode):
    digest = hashlib.sha256()
    hash_entry(digest, entry, with_inode)
    return digest.digest()


cdef int hash_entry(object digest, Entry entry, bint with_inode) except -1:
    """Hash one entry in the layout of storage.md."""
    if with_inode:
        digest.update(_INODE.pack(entry.inode))
    digest.update(entry.meta())
    digest.update(entry._data)
    return 0
