"""Invalidation of the kernel's cached entries, attributes and pages after a change of the tree.

Contract: docs/spec/fuse.md, "Invalidation".
"""

from collections.abc import Callable, Iterable, Mapping

from pmxcfs._core import Entry, Tree
from pmxcfs.fuse.node_ids import Handle
from pmxcfs.fuse.notifier import Name, Notifier
from pmxcfs.messages import Kind
from pmxcfs.text import to_bytes
from pmxcfs.tree.adoption import Reload
from pmxcfs.tree.apply import Change
from pmxcfs.tree.modes import changes_mode
from pmxcfs.vfs.writeback import OpenFile

# As globals, which are found faster than members of an enumeration.
_RENAME, _WRITE, _MTIME, _UNLOCK = Kind.RENAME, Kind.WRITE, Kind.MTIME, Kind.UNLOCK


class KernelCache:
    """Queues the notifications that a change of the tree needs. Used with the tree's lock held.

    No notification is sent for a name that the kernel has not cached, neither as an entry nor as a
    negative entry. A name that the kernel is just creating counts as cached: the kernel has looked
    it up before and has got a negative entry.
    """

    def __init__(
        self,
        notifier: Notifier,
        tree: Tree,
        known: Mapping[int, object],
        *,
        handles: Mapping[int, Handle],
        may_be_absent: Callable[[int, bytes], bool],
    ) -> None:
        self._notifier = notifier
        self._tree = tree
        self._known = known  # node ids that the kernel holds references to
        self._handles = handles
        self._may_be_absent = may_be_absent  # a directory's node id, a name

    def on_change(self, change: Change, foreign: bool) -> None:
        """Notify of *change*: completely if *foreign*, else of what the reply does not contain."""
        if foreign:
            self._on_foreign(change)
        else:
            self._on_own(change)

    def _on_own(self, change: Change) -> None:
        if change.kind is _UNLOCK:
            self._on_foreign(change)
        elif change.source and changes_mode(change.source, change.path):
            self._notifier.attributes([change.entry.node])
        elif change.has_new_time:  # the kernel has updated the ctime only
            self._forget_inode(change.entry, False)

    def on_undone(self, undone: Mapping[Entry, str], error: Exception) -> None:
        """Notify that changes were rolled back which the kernel may have cached.

        *undone* has the entries and the paths that they had before the rollback.
        """
        for entry, path in undone.items():
            if path != entry.path or not entry.is_attached:
                directory, _, name = path.rpartition("/")
                parent = self._tree.find(directory)
                if parent is not None:
                    self._forget_name(parent, name)
            if entry.is_attached:
                self._forget_entry(entry, True)

    def on_displaced(self, entry: Entry) -> None:
        """Notify that the content differs from the written pages that the kernel has cached."""
        self._forget_inode(entry, True)

    def on_name_gone(self, directory: Entry, name: str) -> None:
        """Notify that *directory* has no *name* any more, which the tree never had."""
        self._forget_name(directory, name)

    def on_quorum(self) -> None:
        """Notify that the mode of every entry has changed."""
        if self._notifier.expire_all_entries():
            for node in self._used_without_look_up():
                self._notifier.inode(node, pages=False)
        else:
            self._notifier.attributes(list(self._known))

    def _used_without_look_up(self) -> Iterable[int]:
        """Return the nodes that a program may use without a look-up: directories and open files.

        A program can have any directory as its working directory, and the root has no name.
        """
        entries = [found for found in self._known.values() if isinstance(found, Entry)]
        opened = [handle for handle in self._handles.values() if isinstance(handle, OpenFile)]
        nodes = {entry.node for entry in entries if entry.is_directory}
        return nodes | {handle.entry.node for handle in opened}

    def on_reload(self, reload: Reload) -> None:
        """Notify of all differences between the old tree and the adopted one."""
        for directory, name in reload.names:
            self._forget_name(directory, name)
        for entries, pages in ((reload.contents, True), (reload.attributes, False)):
            for entry in entries:
                self._forget_entry(entry, pages)
        for entry in reload.gone:
            self._forget_inode(entry, False)

    def _on_foreign(self, change: Change) -> None:
        # By directory object, not by path: later changes may have renamed the directories. By the
        # names of this change: later ones may have moved or replaced the entry.
        if change.source_directory is not None:
            name = (change.source or change.path).rpartition("/")[2]
            self._forget_place(change.source_directory, name, change.entry)
        kind, entry = change.kind, change.entry
        if change.directory is not None:
            name = change.path.rpartition("/")[2]
            self._forget_place(change.directory, name, change.replaced or entry)
        if kind is _WRITE or kind is _MTIME or kind is _RENAME:
            self._forget_entry(entry, kind is _WRITE)
        gone = change.replaced if kind is _RENAME else entry
        if gone is not None and not gone.is_attached:  # it can be open, and has no link any more
            self._forget_inode(gone, False)

    def _forget_entry(self, entry: Entry, pages: bool) -> None:
        self._forget_inode(entry, pages)
        self._look_up_again(entry, pages)

    def _forget_inode(self, entry: Entry, pages: bool) -> None:
        if entry.node in self._known:
            self._notifier.inode(entry.node, pages=pages)

    def _forget_place(self, directory: Entry, name: str, before: Entry | None) -> None:
        """Drop *name* from the kernel's cache, if the kernel may hold *before* under it.

        Also if the kernel may know *name* as absent.
        """
        is_known = before is not None and before.node in self._known
        if is_known or self._may_be_absent(directory.node, to_bytes(name)):
            self._forget_name(directory, name)

    def _forget_name(self, directory: Entry, name: str) -> None:
        if directory.node in self._known:
            self._notifier.entry(Name(directory.node, to_bytes(name)))

    def _look_up_again(self, entry: Entry, pages: bool) -> None:
        parent = entry.parent
        if entry.node in self._known and parent is not None and parent.node in self._known:
            name = Name(parent.node, to_bytes(entry.name))
            self._notifier.entry(name, inode=entry.node, pages=pages)
