"""A file system on an issuer that fails on demand, with a clock and the calls of listeners."""

from pmxcfs._core import Entry, Tree
from pmxcfs.messages import (
    EntryType,
    Mutation,
)
from pmxcfs.replica.quorum import QuorumFlag
from pmxcfs.tree.locks import LockTable
from pmxcfs.vfs.filesystem import FileSystem
from pmxcfs.vfs.writeback import PUBLISH_AFTER_NS, OpenFile
from tests.fakes.doubles.issuer import FakeIssuer


class World:
    """A file system, its clock, and what listeners heard."""

    def __init__(self) -> None:
        self.tree = Tree()
        self.issuer = FakeIssuer(self.tree)
        self.now_ns = 10**12
        self.wall = 10**9  # seconds since 1970
        self.locks = LockTable()
        self.quorum = QuorumFlag(is_quorate=True)
        self.displaced: list[Entry] = []
        self.gone: list[tuple[Entry, str]] = []
        self.known: set[Entry] = set()  # entries to which the kernel holds references
        self.unpublished_calls = 0
        self.files = FileSystem(
            self.tree,
            self.issuer,
            locks=self.locks,
            quorum=self.quorum,
            monotonic_ns=lambda: self.now_ns,
            wall_clock=lambda: self.wall,
            on_unpublished=self._note_unpublished,
            on_displaced=self.displaced.append,
            on_name_gone=lambda directory, name: self.gone.append((directory, name)),
            is_known=lambda entry: entry in self.known,
        )
        self._tell(foreign=False)

    def _note_unpublished(self) -> None:
        self.unpublished_calls += 1

    def make(self, path: str, content: bytes = b"published", *, directory: bool = False) -> Entry:
        """Create a saved, published entry and its missing parent directories."""
        parent, name = self.tree.find_parent(path)
        if parent is None:
            parent = self.make(path.rpartition("/")[0], directory=True)
        kind = EntryType.DIRECTORY if directory else EntryType.FILE
        entry = self.tree.create(parent, name, kind, writer=0, mtime=1)
        if not directory:
            self.tree.write(entry, 0, content, truncate=True, writer=0, mtime=1)
        self.tree.mark_written()
        return entry

    def open(self, entry: Entry, *, truncate: bool = False) -> OpenFile:
        return self.files.open(entry, writing=True, truncate=truncate)

    def elsewhere(self, mutation: Mutation) -> None:
        """Deliver a change of another node."""
        self._tell(foreign=True)
        self.issuer.deliver(mutation, writer=9)
        self._tell(foreign=False)

    def _tell(self, foreign: bool) -> None:
        files, issuer = self.files, self.issuer
        issuer.on_applied = lambda change: files.pending.on_applied(change, foreign=foreign)
        issuer.on_change = lambda change: files.on_change(change, foreign=foreign)

    def pass_time(self) -> int:
        """Let the time come at which everything is due."""
        self.now_ns += PUBLISH_AFTER_NS
        return self.files.writeback.publish_due()
