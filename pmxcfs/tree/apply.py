"""Applying a delivered mutation to the tree, with the same result on every node.

``apply`` is a pure function of tree, guest registry and message. It refuses exactly the mutations
that the contract refuses, and checks in that order, because trees of different nodes would diverge
otherwise. So there is no clock, no limit of this node and no rule for issuers here. A refusal
changes nothing, except for ``HalfRenamed``.
Threads: the caller holds the tree's lock.
Contract: docs/spec/cluster.md, "Delivery to the tree".
"""

from pmxcfs._core import Entry, Tree
from pmxcfs.errors import (
    Denied,
    Exists,
    GuestTaken,
    Invalid,
    NotADirectory,
    NotEmpty,
    NotFound,
    Stale,
    TooBig,
)
from pmxcfs.messages import (
    MAX_FILE_SIZE,
    Create,
    Delete,
    EntryType,
    Kind,
    Mkdir,
    Mtime,
    Mutation,
    Rename,
    Unlock,
    Write,
)
from pmxcfs.tree.guests import GuestPath, Guests, parse_guest_path, path_of

_DOTS = (".", "..")
# Members of an enumeration as globals: Python 3.11 calls a function to find one in its class.
_WRITE, _CREATE, _MKDIR = Kind.WRITE, Kind.CREATE, Kind.MKDIR
_DELETE, _RENAME = Kind.DELETE, Kind.RENAME
_FILE, _DIRECTORY = EntryType.FILE, EntryType.DIRECTORY


class Change:
    """The result of an applied mutation."""

    def __init__(
        self,
        kind: Kind,
        path: str,
        entry: Entry,
        source: str = "",
        replaced: Entry | None = None,
        *,
        source_directory: Entry | None = None,
        directory: Entry | None = None,
        has_new_time: bool = False,
    ) -> None:
        self.kind = kind
        self.path = path  # of the entry afterwards; for DELETE and UNLOCK its last path
        self.entry = entry  # a listener may let another object stand in for it
        self.source = source  # RENAME: the old path
        self.replaced = replaced  # RENAME: the entry that was at the path before
        self.source_directory = source_directory  # RENAME, DELETE, UNLOCK: the old parent
        # CREATE, MKDIR, RENAME: the new parent. Later changes can have moved the entry once more.
        self.directory = directory
        self.has_new_time = has_new_time  # RENAME: the mtime changed, too

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Change) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash(self._fields())

    def __repr__(self) -> str:
        return f"Change{self._fields()}"

    def _fields(self) -> tuple[object, ...]:
        where = self.path, self.entry, self.source, self.replaced
        return self.kind, *where, self.source_directory, self.directory, self.has_new_time


class HalfRenamed(NotEmpty):
    """A directory with entries was not renamed, but the entry at the target was removed.

    *change* describes the removal, as a DELETE. The tree's version stays the same.
    """

    def __init__(self, message: str, change: Change) -> None:
        super().__init__(message)
        self.change = change


def apply(tree: Tree, guests: Guests, mutation: Mutation, writer: int, mtime: int) -> Change:
    """Apply one mutation, sent by node *writer* at *mtime* (seconds).

    A refusal raises the PmxcfsError whose ``errno`` is the result for the caller.
    """
    if type(mutation) is Write:
        return _write(tree, guests, mutation, writer, mtime)
    if type(mutation) is Create:
        return _create(tree, guests, mutation, writer, mtime)
    if type(mutation) is Rename:
        return _rename(tree, guests, mutation, writer, mtime)
    if type(mutation) is Delete:
        return _delete(tree, guests, mutation, writer, mtime)
    if type(mutation) is Mkdir:
        return _mkdir(tree, mutation, writer, mtime)
    if type(mutation) is Mtime:
        return _set_mtime(tree, mutation, writer, mtime)
    assert isinstance(mutation, Unlock), "there is no other mutation"
    return _unlock(tree, mutation, writer, mtime)


def _write(tree: Tree, guests: Guests, mutation: Write, writer: int, mtime: int) -> Change:
    path, offset, data = mutation.path, mutation.offset, mutation.data
    if offset + len(data) > MAX_FILE_SIZE:
        raise TooBig(f"{path!r} would exceed {MAX_FILE_SIZE} bytes")
    entry = tree.find(path)
    if entry is not None and not entry.is_directory and entry.name not in _DOTS:
        guest = _check_guest(guests, path)  # its place need not be looked for
    else:
        parent, name = _place_for(tree, path)
        guest = _check_guest(guests, path)
        entry = parent.child(name)
    if entry is None:
        raise NotFound(f"no file {path!r}")
    if entry.is_directory:
        raise NotADirectory(f"{path!r} is a directory")
    tree.write(
        entry,
        offset,
        data,
        truncate=mutation.truncate,
        writer=writer,
        mtime=mtime,
    )
    _register(guests, guest)
    return Change(_WRITE, entry.path, entry)


def _create(tree: Tree, guests: Guests, mutation: Create, writer: int, mtime: int) -> Change:
    path = mutation.path
    parent, name = _place_for(tree, path)
    guest = _check_guest(guests, path)
    existing = parent.child(name)
    if existing is not None and existing.is_directory:
        raise NotADirectory(f"{path!r} is a directory")
    if existing is not None:
        raise Exists(f"{path!r} exists already")
    entry = tree.create(parent, name, _FILE, writer=writer, mtime=mtime)
    _register(guests, guest)
    return Change(_CREATE, entry.path, entry, directory=parent)


def _mkdir(tree: Tree, mutation: Mkdir, writer: int, mtime: int) -> Change:
    parent, name = _place_for(tree, mutation.path)
    if parent.child(name) is not None:
        raise Exists(f"{mutation.path!r} exists already")
    entry = tree.create(parent, name, _DIRECTORY, writer=writer, mtime=mtime)
    return Change(_MKDIR, entry.path, entry, directory=parent)


def _delete(tree: Tree, guests: Guests, mutation: Delete, writer: int, mtime: int) -> Change:
    entry = _existing(tree, mutation.path)
    if entry is tree.root:
        raise Denied("the root can't be removed")
    _check_empty(entry)
    source_directory = entry.parent
    tree.remove(entry, writer=writer, mtime=mtime)
    guest = parse_guest_path(mutation.path)
    if guest:
        guests.unregister(guest.vmid)
    return Change(_DELETE, entry.path, entry, source_directory=source_directory)


def _rename(tree: Tree, guests: Guests, mutation: Rename, writer: int, mtime: int) -> Change:
    entry = _existing(tree, mutation.path)
    guest = None
    if not entry.is_directory:
        guest = _check_guest(guests, mutation.to, mutation.path)
    elif _is_below_locks(entry.path):
        raise Denied(f"the lock {mutation.path!r} can't be renamed")
    parent, name = _parent_of(tree, mutation.to)
    _check_movable(tree, entry, parent)
    source, target = entry.path, parent.child(name)
    if target is entry:
        raise Invalid(f"{mutation.path!r} can't be renamed onto itself")
    if target is not None:
        _check_empty(target)
    if entry.child_count:
        raise _half_renamed(tree, mutation, target)
    source_directory, has_new_time = entry.parent, entry.mtime != mtime
    replaced = tree.rename(entry, parent, name, writer=writer, mtime=mtime)
    if not entry.is_directory:
        _move_registration(guests, mutation.path, guest)
    return Change(
        _RENAME,
        entry.path,
        entry,
        source,
        replaced,
        source_directory=source_directory,
        directory=parent,
        has_new_time=has_new_time,
    )


def _half_renamed(tree: Tree, mutation: Rename, target: Entry | None) -> NotEmpty:
    """Remove *target*, for compatibility with existing nodes, and return the exception to raise."""
    message = f"{mutation.path!r} has entries and can't be renamed"
    if target is None:
        return NotEmpty(message)
    source_directory = target.parent
    tree.drop(target)
    return HalfRenamed(
        message,
        Change(_DELETE, target.path, target, source_directory=source_directory),
    )


def _set_mtime(tree: Tree, mutation: Mtime, writer: int, mtime: int) -> Change:
    parent, name = _place_for(tree, mutation.path)
    entry = parent.child(name)
    if entry is None:
        raise NotFound(f"no entry {mutation.path!r}")
    is_renewal = writer == entry.writer and mutation.mtime >= entry.mtime
    if _is_lock(entry) and not is_renewal:
        raise Denied(
            f"the lock {mutation.path!r} can be renewed only by its owner, and not backwards"
        )
    tree.touch(entry, writer=writer, mtime=mutation.mtime)
    return Change(Kind.MTIME, entry.path, entry)


def _unlock(tree: Tree, mutation: Unlock, writer: int, mtime: int) -> Change:
    entry = _existing(tree, mutation.path)
    if not entry.is_directory or not _is_below_locks(entry.path):
        raise Denied(f"{mutation.path!r} is not a lock")
    if tree.entry_checksum(entry) != mutation.checksum:
        raise Stale(f"the lock {mutation.path!r} has changed")
    _check_empty(entry)
    source_directory = entry.parent
    tree.remove(entry, writer=writer, mtime=mtime)
    return Change(Kind.UNLOCK, entry.path, entry, source_directory=source_directory)


def _existing(tree: Tree, path: str) -> Entry:
    entry = tree.find(path)
    if entry is None:
        raise NotFound(f"no entry {path!r}")
    return entry


def _parent_of(tree: Tree, path: str) -> tuple[Entry, str]:
    """Return the directory of *path* and its last name. Raises Denied for the root."""
    parent, name = tree.find_parent(path)
    if not name:
        raise Denied("the root can't be changed")
    if parent is None:
        raise NotFound(f"no directory for {path!r}")
    if not parent.is_directory:
        raise NotADirectory(f"{path!r} is below a file")
    return parent, name


def _place_for(tree: Tree, path: str) -> tuple[Entry, str]:
    """Return directory and last name of the path of a CREATE, WRITE, MKDIR or MTIME."""
    parent, name = _parent_of(tree, path)
    if name in _DOTS:
        raise Denied(f"{path!r} is not a name for an entry")
    return parent, name


def _check_empty(entry: Entry) -> None:
    if entry.child_count:
        raise NotEmpty(f"{entry.path!r} has entries")


def _check_movable(tree: Tree, entry: Entry, parent: Entry) -> None:
    """Refuse a move of the root or below itself. A correct node never sends such a RENAME."""
    if entry is tree.root:
        raise Denied("the root can't be renamed")
    ancestor: Entry | None = parent
    while ancestor is not None:
        if ancestor is entry:
            raise Invalid(f"{entry.path!r} can't be moved below itself")
        ancestor = ancestor.parent


def _is_below_locks(path: str) -> bool:
    return path.startswith("priv/lock/")


def _is_lock(entry: Entry) -> bool:
    """Tell whether *entry* is a directory directly below ``priv/lock``."""
    holder = entry.parent
    return entry.is_directory and holder is not None and holder.path == "priv/lock"


def _check_guest(guests: Guests, path: str, source: str = "") -> GuestPath | None:
    """Return the guest of a configuration path. Raises GuestTaken if another file has its vmid."""
    guest = parse_guest_path(path)
    if guest is not None and guests.conflicts(guest, parse_guest_path(source)):
        holder = guests.get(guest.vmid)
        raise GuestTaken(path, "another file" if holder is None else path_of(holder))
    return guest


def _register(guests: Guests, guest: GuestPath | None) -> None:
    if guest is not None:
        guests.register(guest)


def _move_registration(guests: Guests, source: str, guest: GuestPath | None) -> None:
    before = parse_guest_path(source)
    if before is not None:
        guests.unregister(before.vmid)
    _register(guests, guest)
