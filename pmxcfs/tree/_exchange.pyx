# cython: language_level=3, auto_pickle=False, autotestdict=False
"""The inner loops of an adoption: comparing the inode table with an index, and the swap.

No decisions and no checks: ``adoption`` has planned every step and has checked that the result is
a tree. An unchanged entry costs one comparison of digests, and nothing in the swap.
Threads: ``exchange`` needs the tree's lock. The other functions only read; the published tree must
not change while they run.
"""

from libc.stdint cimport uint64_t

from pmxcfs._core cimport Entry, Tree, new_entry

from pmxcfs.text import to_text


def differing(Tree tree not None, dict digests not None):
    """Return the inodes in *digests* that *tree* lacks or has with another digest."""
    cdef list found = []
    cdef Entry entry
    cdef bytes digest
    for inode, digest in digests.items():
        entry = tree._table.get(inode)
        if entry is None or not entry.index_line().endswith(digest):
            found.append(inode)
    return found


def entries_not_in(Tree tree not None, dict digests not None):
    """Return the entries of *tree* whose inodes are not in *digests*."""
    return [entry for inode, entry in tree._table.items() if inode not in digests]


def highest_version(Tree tree not None, set excluded not None):
    """Return the highest version of an entry whose inode is not in *excluded*; 0 if none."""
    cdef uint64_t highest = 0
    cdef Entry entry
    for inode, entry in tree._table.items():
        if entry.version > highest and inode not in excluded:
            highest = entry.version
    return highest


def new_entries(list records not None, set sparse not None):
    """Return a new, detached entry for each record.

    Entries with an inode in *sparse* get the size of the record's data, but no data.
    """
    cdef list entries = []
    cdef Entry entry
    for record in records:
        entry = new_entry(record.inode, record.type)
        entry.name = to_text(record.name)
        set_record(entry, record, sparse)
        entries.append(entry)
    return entries


def exchange(Tree tree not None, list leaving not None, list arriving not None,
             list staying not None, set sparse not None):
    """Detach, attach and update entries in one step, and record each as changed.

    *leaving*: entries to detach; they keep content and draft. *arriving*: pairs (new entry, inode
    of its directory), each directory before its children. *staying*: pairs (entry, new record);
    the path stays the same and the draft is rebased. *sparse*: as in ``new_entries``.
    """
    cdef Entry entry
    for entry in leaving:
        tree.detach(entry)
    for entry, inode in arriving:
        tree.attach(entry, tree._table[inode], entry.name)
        tree.note_touched(entry)
    for entry, record in staying:
        tree.note_touched(entry)
        tree.content_bytes -= entry.size
        set_record(entry, record, sparse)
        tree.content_bytes += entry.size
        if entry.inode != 0 and entry.parent.inode != record.parent:
            relink(tree, entry, tree._table[record.parent])
        tree.rebase_draft(entry)


cdef int set_record(Entry entry, record, set sparse) except -1:
    """Set stamp and content of *entry* from a record."""
    entry.stamp(record.version, record.writer, record.mtime)
    entry._data = record.data or b""
    entry.size = len(entry._data)
    if entry.inode in sparse:
        entry._data = b""
    return 0


cdef int relink(Tree tree, Entry entry, Entry parent) except -1:
    """Move *entry* to *parent*, the new directory at the path of its old one."""
    tree.content_bytes -= entry.size
    del entry.parent._children[entry.name]
    entry.parent.listing_version += 1
    return tree.link(entry, parent, entry.name)
