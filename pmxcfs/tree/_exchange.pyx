# cython: language_level=3, auto_pickle=False, autotestdict=False
"""What becoming another node's tree does to the inode table: finding what differs, and the swap.

Decides nothing and checks nothing: ``adoption`` has planned every step and knows that the outcome
is a tree. What stays the same costs one comparison of digests and nothing in the swap.
Threads: the caller holds the tree's lock.
"""

from libc.stdint cimport uint64_t

from pmxcfs._core cimport Entry, Tree, new_entry

from pmxcfs.text import to_text


def differing(Tree tree not None, dict digests not None):
    """Return the inodes of *digests* that *tree* lacks or has with another digest."""
    cdef list found = []
    cdef Entry entry
    cdef bytes digest
    for inode, digest in digests.items():
        entry = tree._table.get(inode)
        if entry is None or not entry.line().endswith(digest):
            found.append(inode)
    return found


def lacking(Tree tree not None, dict digests not None):
    """Return the entries of *tree* whose inodes are not in *digests*."""
    return [entry for inode, entry in tree._table.items() if inode not in digests]


def highest_version(Tree tree not None, set besides not None):
    """Return the highest version of an entry whose inode is not in *besides*, 0 without any."""
    cdef uint64_t highest = 0
    cdef Entry entry
    for inode, entry in tree._table.items():
        if entry.version > highest and inode not in besides:
            highest = entry.version
    return highest


def made_of(list records not None, set sparse not None):
    """Return a new entry for each record, in no tree yet.

    Those with an inode in *sparse* get the size of their data without the data.
    """
    cdef list entries = []
    cdef Entry entry
    for record in records:
        entry = new_entry(record.inode, record.type)
        entry.name = to_text(record.name)
        refill(entry, record, sparse)
        entries.append(entry)
    return entries


def exchange(Tree tree not None, list leaving not None, list arriving not None,
             list staying not None, set sparse not None):
    """Let entries go, come and change, each noted as unsaved.

    *leaving* entries are detached and keep content and draft. *arriving* are pairs (a new entry,
    its directory's inode), directories before what they contain. *staying* are pairs (entry, its
    new record), at the same path, drafts rebased. Inodes in *sparse* are as in ``made_of``.
    """
    cdef Entry entry
    for entry in leaving:
        tree.detach(entry)
    for entry, inode in arriving:
        tree.attach(entry, tree._table[inode], entry.name)
        tree.touched(entry)
    for entry, record in staying:
        tree.touched(entry)
        tree.content_bytes -= entry._size
        refill(entry, record, sparse)
        tree.content_bytes += entry._size
        if entry.inode != 0 and entry.parent.inode != record.parent:
            relink(tree, entry, tree._table[record.parent])
        tree.follow(entry)


cdef int refill(Entry entry, record, set sparse) except -1:
    """Give *entry* the stamp and content of a record."""
    entry.stamp(record.version, record.writer, record.mtime)
    entry._data = record.data or b""
    entry._size = len(entry._data)
    if entry.inode in sparse:
        entry._data = b""
    return 0


cdef int relink(Tree tree, Entry entry, Entry parent) except -1:
    """Move *entry* into another directory at the same path."""
    tree.content_bytes -= entry._size
    del entry.parent._children[entry.name]
    entry.parent.listing_version += 1
    return tree.link(entry, parent, entry.name)
