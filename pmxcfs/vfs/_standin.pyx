# cython: language_level=3, auto_pickle=False, autotestdict=False
"""Objects of files that the tree does not have yet, and their way into it.

Such an object has a directory and a name, so it has a path and a mode, but the directory does not
have it. Once the tree has a file of that name, the object *stands in* for the tree's object: it
gets all published fields of that one and its place. So what refers to the object (handles, the
kernel's node id, a draft) refers to the file from then on.

No decisions here: ``pending`` makes them. A module in C, as only C code can set these fields.
Threads: all functions need the tree's lock; ``stand_in`` changes what is published, as only the
owner of the tree's group may.
"""

from libc.stdint cimport uint32_t, uint64_t

from pmxcfs._core cimport Entry, Tree, is_private_place, new_entry

from pmxcfs.messages import EntryType

NO_INODE = 0xFFFFFFFFFFFFFFFF  # the inode of an object that was never in the tree

cdef uint64_t _NO_INODE = NO_INODE


def new_file(Entry parent not None, str name not None, uint32_t mtime):
    """Return the object of an empty file *name* in *parent*, which the tree does not have yet."""
    cdef Entry entry = new_entry(_NO_INODE, EntryType.FILE)
    entry.stamp(0, 0, mtime)
    place(entry, parent, name)
    return entry


def place(Entry entry not None, Entry parent not None, str name not None):
    """Set directory and name of an object that the tree does not have; *parent* is in the tree."""
    entry.parent = parent
    entry.name = name
    entry.private = is_private_place(parent, name)
    entry._path = None


def unplace(Entry entry not None):
    """Take the directory away from an object that the tree does not have; it keeps its path."""
    entry.full_path()
    entry.parent = None


def stand_in(Tree tree not None, Entry held not None, Entry entry not None):
    """Put the pending object *held* in the place of *entry*, a file of *tree* without a draft."""
    tree.check_attached(entry)
    cdef Entry parent = entry.parent
    tree._path_cache.pop(entry.full_path(), None)
    if entry in tree._touched:
        tree._touched[held] = tree._touched.pop(entry)
    held.inode = entry.inode
    held.stamp(entry.version, entry.writer, entry.mtime)
    held._data, held.size = entry._data, entry.size
    held._segment, held.has_row = entry._segment, entry.has_row
    place(held, parent, entry.name)
    parent._children[held.name] = held
    parent.listing_version += 1
    tree._table[held.inode] = held
    entry.parent = None
    tree.rebase_draft(held)
