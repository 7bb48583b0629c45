# cython: language_level=3, auto_pickle=False, autotestdict=False
"""What becoming another node's tree does to the inode table: finding what differs, and the swap.

Decides nothing and checks nothing: ``adoption`` has planned every step and knows that the outcome
is a tree. What stays the same costs one comparison of digests and nothing in the swap.
Threads: the caller holds the tree's lock.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.string cimport memcmp

from pmxcfs._core cimport Entry, Tree, is_private_place


def differing(Tree tree not None, dict digests not None):
    """Return the inodes of *digests* that *tree* lacks or has with another digest."""
    cdef list found = []
    cdef Entry entry
    cdef bytes digest
    for inode, digest in digests.items():
        entry = tree._table.get(inode)
        if entry is None or len(digest) != sizeof(entry._digest) or memcmp(
                entry.digest(), PyBytes_AS_STRING(digest), sizeof(entry._digest)):
            found.append(inode)
    return found


def lacking(Tree tree not None, dict digests not None):
    """Return the entries of *tree* whose inodes are not in *digests*."""
    return [entry for inode, entry in tree._table.items() if inode not in digests]


def exchange(Tree tree not None, list leaving not None, list arriving not None,
             list staying not None, set hollow not None):
    """Let entries go, come and change, each noted as unsaved.

    *leaving* entries are detached and keep content and draft. *arriving* are records, directories
    before what they contain. *staying* are pairs (entry, its new record), at the same path, drafts
    rebased. Inodes in *hollow* get the size of their data without the data.
    """
    cdef Entry entry, parent
    for entry in leaving:
        tree.detach(entry)
    for record in arriving:
        entry = tree.admit(record)
        hollow_out(entry, hollow)
        parent = tree._table[record.parent]
        tree.link(entry, parent, entry.name)
        entry.private = is_private_place(parent, entry.name)
        tree.touched(entry)
    for entry, record in staying:
        refill(tree, entry, record, hollow)
        if entry.inode != 0 and entry.parent.inode != record.parent:
            relink(tree, entry, tree._table[record.parent])
        tree.follow(entry)


cdef int refill(Tree tree, Entry entry, record, set hollow) except -1:
    """Give *entry* the stamp and content of its new record."""
    tree.touched(entry)
    tree.content_bytes -= entry._size
    entry.stamp(record.version, record.writer, record.mtime)
    entry._data = record.data or b""
    entry._size = len(entry._data)
    hollow_out(entry, hollow)
    tree.content_bytes += entry._size
    return 0


cdef int hollow_out(Entry entry, set hollow) except -1:
    if entry.inode in hollow:
        entry._data = b""
    return 0


cdef int relink(Tree tree, Entry entry, Entry parent) except -1:
    """Move *entry* into another directory at the same path."""
    tree.content_bytes -= entry._size
    del entry.parent._children[entry.name]
    entry.parent.listing_version += 1
    return tree.link(entry, parent, entry.name)
