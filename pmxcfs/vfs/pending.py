"""The pending files: those that this mount has made and not announced to the cluster yet.

A pending file has an object with a directory and a name, but the tree does not know it. Its bytes
are in its draft. It ends in one of these ways:

- The tree gets a file of that name: the object stands in for the tree's (``on_applied``). This
  node's own CREATE ends so, and so does that of another node, or a reload.
- It is removed: by users, or because it could not be announced. Then it is in no directory.

``writeback`` decides when a file is announced. Only a cluster has pending files.
Threads: all methods need the tree's lock; ``on_applied`` and ``on_reload`` run in the owner of the
tree's group, which alone changes the tree.
Contract: docs/spec/cluster.md, "A new file is announced with its content".
"""

from collections.abc import Callable

from pmxcfs._core import Entry, Tree
from pmxcfs.errors import IsADirectory, NotADirectory, NotFound, PmxcfsError, Stale
from pmxcfs.messages import Kind
from pmxcfs.tree.apply import Change
from pmxcfs.vfs._standin import NO_INODE, new_file, place, stand_in, unplace

_NEVER = 0  # of a file that the timer passes over


class PendingFiles:
    """The pending files of a mount, by their directories.

    *is_known* tells whether the kernel has the node id of an entry. *on_displaced* is called with a
    file that gets content which the kernel does not know.
    """

    def __init__(
        self,
        tree: Tree,
        *,
        is_known: Callable[[Entry], bool],
        on_displaced: Callable[[Entry], None],
    ) -> None:
        self.by_directory: dict[Entry, dict[str, Entry]] = {}
        self._tree = tree
        self._is_known = is_known
        self._on_displaced = on_displaced
        # Of each file when it was made (ns, monotonic), or _NEVER if the timer passes over it.
        self.files: dict[Entry, int] = {}
        self.announced: set[Entry] = set()  # those of which a CREATE is on its way

    def find(self, directory: Entry, name: str) -> Entry | None:
        """Return the pending file that users see as *name* in *directory*, or None.

        What the tree has under that name hides it.
        """
        names = self.by_directory.get(directory)
        if names is None or directory.child(name) is not None:
            return None
        return names.get(name)

    def children(self, directory: Entry) -> list[Entry]:
        """Return the pending files that users see in *directory*."""
        names = self.by_directory.get(directory, {})
        return [entry for name, entry in names.items() if directory.child(name) is None]

    def add(self, directory: Entry, name: str, *, mtime: int, now_ns: int) -> Entry:
        """Make a pending file; *mtime* in seconds, *now_ns* monotonic."""
        entry = new_file(directory, name, mtime)
        self.by_directory.setdefault(directory, {})[name] = entry
        self.files[entry] = now_ns
        return entry

    def remove(self, entry: Entry) -> None:
        """Take a pending file away from its directory; its handles keep the object."""
        del self.files[entry]
        self._leave_directory(entry)
        unplace(entry)

    def _leave_directory(self, entry: Entry) -> None:
        assert entry.parent is not None, "pending files have a directory"
        names = self.by_directory[entry.parent]
        del names[entry.name]
        if not names:
            del self.by_directory[entry.parent]

    # The timer

    def due(self, before_ns: int) -> list[Entry]:
        """Return the files that were made up to *before_ns* (monotonic) and wait for the timer."""
        return [entry for entry, since in self.files.items() if _NEVER < since <= before_ns]

    def oldest_ns(self) -> int:
        """Return when the oldest file was made that waits for the timer; 0 if none does."""
        return min([since for since in self.files.values() if since != _NEVER], default=0)

    def pass_over(self, entry: Entry) -> None:
        """Let a file wait for a request, and not for the timer."""
        self.files[entry] = _NEVER

    # Announcing

    def check(self, entry: Entry) -> None:
        """Raise the error of a file that can't be announced: NotFound, IsADirectory, or Stale.

        Stale: another file has the name, and the kernel has a node id of its own for that.
        """
        parent = entry.parent
        assert parent is not None, "pending files have a directory"
        if not parent.is_attached:
            raise NotFound(f"the directory of {entry.path} was removed")
        found = parent.child(entry.name)
        if found is not None:
            raise self._error_at(found)

    def explain(self, entry: Entry, error: PmxcfsError) -> PmxcfsError:
        """Return the error for users of an announcement that failed with *error*."""
        found = self._tree.find(entry.path) if isinstance(error, NotADirectory) else None
        return error if found is None else self._error_at(found)

    def _error_at(self, found: Entry) -> PmxcfsError:
        if found.is_directory:
            return IsADirectory(f"{found.path} has become a directory")
        return Stale(f"another node has renamed a file to {found.path}")

    # Listeners of the replica

    def on_applied(self, change: Change, foreign: bool) -> None:
        """Look whether *change*, which was applied just now, is about a pending file."""
        if not self.files or change.kind not in (Kind.CREATE, Kind.RENAME):
            return
        entry = change.entry
        if entry.is_directory:
            self._follow(entry)
            return
        assert entry.parent is not None, "the change has put it there"
        held = self.by_directory.get(entry.parent, {}).get(entry.name)
        if held is None and change.kind is Kind.CREATE and not foreign:
            held = self._left_behind(entry.path)
        if held is None:
            return
        if change.kind is Kind.RENAME and not foreign:  # by users of this mount: it is replaced
            self.remove(held)
            self._tree.orphan(held)
        elif self._stand_in(held, entry):
            change.entry = held

    def _left_behind(self, path: str) -> Entry | None:
        """Return the file announced as *path* whose directory was made anew meanwhile, or None."""
        for entry in self.announced & self.files.keys():
            parent = entry.parent
            if parent is not None and not parent.is_attached and entry.path == path:
                return entry
        return None

    def _follow(self, directory: Entry) -> None:
        """Give the pending files of a moved *directory* their new paths."""
        for name, entry in self.by_directory.get(directory, {}).items():
            place(entry, directory, name)

    def _stand_in(self, held: Entry, entry: Entry) -> bool:
        """Let *held* stand in for *entry* if nothing refers to that; tell whether it does."""
        if entry.is_directory or entry.has_draft or self._is_known(entry):
            return False
        del self.files[held]
        self._leave_directory(held)
        stand_in(self._tree, held, entry)
        if held.size:
            self._on_displaced(held)
        return True

    def on_reload(self) -> None:
        """Put the files into the directories that have their paths now, after a reload."""
        for entry in list(self.files):
            parent = self._directory_of(entry)
            found = None if parent is None else parent.child(entry.name)
            if found is not None:
                self._stand_in(entry, found)

    def _directory_of(self, entry: Entry) -> Entry | None:
        """Return the directory that has the path of the file's directory now, and move it there."""
        parent = entry.parent
        assert parent is not None, "pending files have a directory"
        if parent.is_attached:
            return parent
        found = self._tree.find(parent.path)
        if found is None or not found.is_directory:
            return None
        names = self.by_directory.setdefault(found, {})
        if entry.name in names:
            return None
        self._leave_directory(entry)
        names[entry.name] = entry
        place(entry, found, entry.name)
        return found


def is_dead(entry: Entry) -> bool:
    """Tell whether *entry* is the object of a file that could not be announced."""
    return not was_in_tree(entry) and entry.parent is None and not entry.is_orphan


def was_in_tree(entry: Entry) -> bool:
    """Tell whether the tree has, or had, the object *entry*."""
    return entry.inode != NO_INODE
