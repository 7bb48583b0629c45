"""Which of the kernel's cached names, attributes and pages a change of the tree makes invalid.

Contract: docs/spec/fuse.md, "Invalidation"; filesystem.md, "Better than before" 4.
"""

import logging
from collections.abc import Callable, Mapping

from pmxcfs._core import Entry, Tree
from pmxcfs.fuse.notifier import Name, Notifier
from pmxcfs.messages import Kind
from pmxcfs.text import to_bytes
from pmxcfs.tree.adoption import Reload
from pmxcfs.tree.apply import Change
from pmxcfs.tree.modes import changes_mode

_log = logging.getLogger("pmxcfs.fuse")


class KernelCache:
    """Which notifications a change of the tree needs. Used with the tree's lock held.

    None where the kernel can't have a name: neither with an entry that it knows, nor as absent.
    What it is just making, and does not know yet, it has asked for, and been told absent.
    """

    def __init__(
        self,
        notifier: Notifier,
        tree: Tree,
        known: Mapping[int, object],
        *,
        may_be_absent: Callable[[int, bytes], bool],
    ) -> None:
        self._notifier = notifier
        self._tree = tree
        self._known = known  # node ids that the kernel holds references to
        self._may_be_absent = may_be_absent  # a directory's node id, a name

    def on_change(self, change: Change, *, foreign: bool) -> None:
        """Notify of *change*: all of it if foreign, else what the reply does not tell."""
        if foreign or change.kind is Kind.UNLOCK:
            self._on_foreign(change)
        elif change.source and changes_mode(change.source, change.path):
            self._notifier.attributes([change.entry.node])
        elif change.has_new_time:  # the kernel knows that the ctime is, but of nothing else
            self._forget_inode(change.entry, pages=False)

    def on_undone(self, undone: Mapping[Entry, str], error: Exception) -> None:
        """Notify that entries, which were at these paths, are as before: others have seen them."""
        for entry, path in undone.items():
            if path != entry.path or not entry.is_attached:
                directory, _, name = path.rpartition("/")
                parent = self._tree.find(directory)
                if parent is not None:
                    self._forget_name(parent, name)
            if entry.is_attached:
                self._forget_entry(entry, pages=True)

    def on_displaced(self, entry: Entry) -> None:
        """Notify that bytes which had been written are not where the kernel has them."""
        self._forget_inode(entry, pages=True)

    def on_quorum(self) -> None:
        """Notify that every mode has changed."""
        self._notifier.attributes(list(self._known))

    def on_reload(self, reload: Reload) -> None:
        """Notify of everything that differs in another node's tree."""
        for directory, name in reload.names:
            self._forget_name(directory, name)
        for entries, pages in ((reload.contents, True), (reload.attributes, False)):
            for entry in entries:
                self._forget_entry(entry, pages=pages)

    def _on_foreign(self, change: Change) -> None:
        # By the directories themselves: where they are now may be the work of later changes.
        if change.source_directory is not None:
            name = (change.source or change.path).rpartition("/")[2]
            self._forget_place(change.source_directory, name, before=change.entry)
        if (
            change.kind in (Kind.CREATE, Kind.MKDIR, Kind.RENAME)
            and change.entry.parent is not None
        ):
            self._forget_place(
                change.entry.parent, change.entry.name, before=change.replaced or change.entry
            )
        if change.kind in (Kind.WRITE, Kind.MTIME, Kind.RENAME):
            self._forget_entry(change.entry, pages=change.kind is Kind.WRITE)

    def _forget_entry(self, entry: Entry, *, pages: bool) -> None:
        self._forget_inode(entry, pages=pages)
        self._look_up_again(entry, pages=pages)

    def _forget_inode(self, entry: Entry, *, pages: bool) -> None:
        if entry.node in self._known:
            self._notifier.inode(entry.node, pages=pages)

    def _forget_place(self, directory: Entry, name: str, *, before: Entry | None) -> None:
        """Notify that something else stands there than *before*, or than nothing."""
        is_known = before is not None and before.node in self._known
        if is_known or self._may_be_absent(directory.node, to_bytes(name)):
            self._forget_name(directory, name)

    def _forget_name(self, directory: Entry, name: str) -> None:
        if directory.node in self._known:
            self._notifier.entry(Name(directory.node, to_bytes(name)))

    def _look_up_again(self, entry: Entry, *, pages: bool) -> None:
        parent = entry.parent
        if entry.node in self._known and parent is not None and parent.node in self._known:
            name = Name(parent.node, to_bytes(entry.name))
            self._notifier.entry(name, inode=entry.node, pages=pages)
