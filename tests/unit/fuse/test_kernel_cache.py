"""In which order the kernel is told, and that nothing waits for what blocks."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pmxcfs._core import Entry, Tree
from pmxcfs.errors import StoreError
from pmxcfs.fuse.kernel_cache import KernelCache
from pmxcfs.fuse.notifier import AGAIN_AFTER, Name, NotificationChannel, Notifier
from pmxcfs.messages import EntryType, Kind
from pmxcfs.tree.apply import Change
from tests.conftest import ExpectLog

PATIENCE = 30.0  # seconds
THREADS = 2
Sent = tuple[object, ...]  # ("inode", node, pages) or ("entry", parent, name, kept)


class Kernel:
    """Takes notifications; those of a locked directory wait until it is unlocked."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self._times: list[float] = []  # of these, monotonic
        self.blocked: list[Sent] = []
        self._locked: set[int] = set()
        self._changed = threading.Condition()
        self.failure: OSError | None = None

    def inode(self, node: int, pages: bool) -> None:
        self._take("inode", node, pages)

    def entry(self, parent: int, name: bytes, kept: bool) -> None:
        with self._changed:
            self.blocked.append(("entry", parent, name, kept))
            self._changed.notify_all()
            self._changed.wait_for(lambda: parent not in self._locked, PATIENCE)
            self.blocked.remove(("entry", parent, name, kept))
        self._take("entry", parent, name, kept)

    def _take(self, *what: object) -> None:
        with self._changed:
            self.sent.append(what)
            self._times.append(time.monotonic())
            self._changed.notify_all()
        if self.failure is not None:
            raise self.failure

    def sent_since(self, moment: float) -> list[Sent]:
        """Return what was sent then or later."""
        return [
            what for what, sent_at in zip(self.sent, self._times, strict=True) if sent_at >= moment
        ]

    @contextmanager
    def locked(self, *directories: int) -> Iterator[None]:
        """Hold the locks of directories."""
        self._locked.update(directories)
        try:
            yield
        finally:
            with self._changed:
                self._locked.clear()
                self._changed.notify_all()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until what was sent satisfies the condition."""
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE), self.sent


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def notifier(kernel: Kernel) -> Iterator[Notifier]:
    running = Notifier(NotificationChannel(kernel.inode, kernel.entry), entry_threads=THREADS)
    yield running
    running.close(PATIENCE)


def wait_until_handed(kernel: Kernel, notifier: Notifier) -> None:
    """Wait until everything has been handed over."""
    deadline = time.monotonic() + PATIENCE
    while notifier.handed != notifier.sequence:
        assert time.monotonic() < deadline
        time.sleep(0.001)


# The queues


def test_after_an_entry_its_inode_is_sent(kernel: Kernel, notifier: Notifier) -> None:
    notifier.entry(Name(1, b"f"), inode=7, pages=True)
    notifier.start()
    kernel.wait_for(lambda: len(kernel.sent) == 2)
    assert kernel.sent == [("entry", 1, b"f", True), ("inode", 7, True)]


def test_a_name_that_is_something_else_is_forgotten_for_good(
    kernel: Kernel, notifier: Notifier
) -> None:
    notifier.entry(Name(1, b"f"))
    notifier.start()
    kernel.wait_for(lambda: len(kernel.sent) == 1)
    assert kernel.sent == [("entry", 1, b"f", False)]


def test_inodes_are_sent_though_every_entry_thread_is_blocked(
    kernel: Kernel, notifier: Notifier
) -> None:
    notifier.start()
    with kernel.locked(1, 2):
        notifier.entry(Name(1, b"f"), inode=7)
        notifier.entry(Name(2, b"f"))
        kernel.wait_for(lambda: len(kernel.blocked) == 2)
        notifier.inode(8, pages=True)
        kernel.wait_for(lambda: kernel.sent == [("inode", 8, True)])
    kernel.wait_for(lambda: ("inode", 7, False) in kernel.sent)


def test_one_busy_directory_hides_nothing_elsewhere(kernel: Kernel, notifier: Notifier) -> None:
    notifier.start()
    with kernel.locked(1):
        for number in range(50):
            notifier.entry(Name(1, b"%d" % number))
        for directory in range(2, 52):
            notifier.entry(Name(directory, b"f"))
        kernel.wait_for(lambda: len(kernel.sent) == 50)
        assert {sent[1] for sent in kernel.sent} == set(range(2, 52))
        assert len(kernel.blocked) == 1
    kernel.wait_for(lambda: len(kernel.sent) == 100)
    assert [sent[2] for sent in kernel.sent[50:]] == [b"%d" % number for number in range(50)]


def test_what_is_queued_twice_is_sent_once(kernel: Kernel, notifier: Notifier) -> None:
    notifier.inode(7, pages=False)
    notifier.inode(8, pages=False)
    notifier.inode(7, pages=True)
    notifier.start()
    kernel.wait_for(lambda: len(kernel.sent) == 2)
    assert kernel.sent == [("inode", 7, True), ("inode", 8, False)]


def test_a_name_that_was_replaced_and_written_is_forgotten_for_good(
    kernel: Kernel, notifier: Notifier
) -> None:
    notifier.entry(Name(1, b"f"), inode=7)
    notifier.entry(Name(1, b"f"))
    notifier.entry(Name(1, b"f"), inode=8, pages=True)
    notifier.entry(Name(1, b"f"), inode=8)
    notifier.start()
    kernel.wait_for(lambda: len(kernel.sent) == 3)
    assert kernel.sent == [("entry", 1, b"f", False), ("inode", 7, False), ("inode", 8, True)]


def test_what_changes_while_it_is_being_sent_is_sent_again(
    kernel: Kernel, notifier: Notifier
) -> None:
    notifier.start()
    with kernel.locked(1):
        notifier.entry(Name(1, b"f"))
        kernel.wait_for(lambda: len(kernel.blocked) == 1)
        notifier.entry(Name(1, b"f"))
        notifier.entry(Name(1, b"f"))
    kernel.wait_for(lambda: len(kernel.sent) == 2)
    wait_until_handed(kernel, notifier)
    assert kernel.sent == [("entry", 1, b"f", False)] * 2


def test_a_sequence_is_reached_when_all_before_it_is_handed_over(
    kernel: Kernel, notifier: Notifier
) -> None:
    assert (notifier.sequence, notifier.handed) == (0, 0)
    notifier.inode(7, pages=True)
    first = notifier.sequence
    assert notifier.handed < first
    notifier.start()
    wait_until_handed(kernel, notifier)
    with kernel.locked(1):
        notifier.entry(Name(1, b"f"), inode=7)
        blocked = notifier.sequence
        notifier.inode(8, pages=True)
        later = notifier.sequence
        kernel.wait_for(lambda: ("inode", 8, True) in kernel.sent)
        assert first <= notifier.handed < blocked < later
    wait_until_handed(kernel, notifier)
    assert notifier.handed >= later


def test_a_sequence_covers_what_was_merged_into_something_earlier(
    kernel: Kernel, notifier: Notifier
) -> None:
    notifier.inode(7, pages=False)
    notifier.inode(7, pages=True)
    sequence = notifier.sequence
    notifier.start()
    kernel.wait_for(lambda: kernel.sent == [("inode", 7, True)])
    wait_until_handed(kernel, notifier)
    assert notifier.handed >= sequence


def test_attributes_are_sent_once_more(kernel: Kernel, notifier: Notifier) -> None:
    notifier.start()
    begin = time.monotonic()
    notifier.attributes([7, 8])
    both = [("inode", 7, False), ("inode", 8, False)]
    kernel.wait_for(lambda: kernel.sent_since(begin + AGAIN_AFTER) == both)


def test_what_is_sent_once_more_needs_no_thread_of_its_own(notifier: Notifier) -> None:
    notifier.start()
    before = threading.active_count()
    for node in range(2, 100):
        notifier.attributes([node])
    assert threading.active_count() == before


def test_closing_sends_nothing_more_and_waits_for_nobody(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pmxcfs.fuse.notifier.AGAIN_AFTER", PATIENCE)
    notifier = Notifier(NotificationChannel(kernel.inode, kernel.entry), entry_threads=THREADS)
    notifier.start()
    with kernel.locked(1):
        notifier.entry(Name(1, b"f"), inode=7)
        kernel.wait_for(lambda: len(kernel.blocked) == 1)
        notifier.attributes([9])
        kernel.wait_for(lambda: kernel.sent == [("inode", 9, False)])
        begin = time.monotonic()
        notifier.close(0.1)
        assert time.monotonic() - begin < PATIENCE
        notifier.inode(8, pages=True)
        assert kernel.sent == [("inode", 9, False)]
    notifier.close(PATIENCE)
    assert kernel.sent == [("inode", 9, False), ("entry", 1, b"f", True)]


def test_a_kernel_that_refuses_is_a_warning(
    kernel: Kernel, notifier: Notifier, expect_log: ExpectLog
) -> None:
    expect_log("can.t invalidate the kernel.s cache: .*no such device")
    kernel.failure = OSError(19, "no such device")
    notifier.start()
    notifier.inode(7, pages=True)
    notifier.entry(Name(1, b"f"))
    wait_until_handed(kernel, notifier)
    assert len(kernel.sent) == 2


# Which notifications a change needs


class Recorder(Notifier):
    """Notes what is queued."""

    def __init__(self) -> None:
        self.queued: list[Sent] = []

    def inode(self, node: int, *, pages: bool) -> None:
        self.queued.append(("inode", node, pages))

    def entry(self, name: Name, *, inode: int = 0, pages: bool = False) -> None:
        self.queued.append(("entry", name.parent, name.name, inode, pages))

    def attributes(self, nodes: list[int]) -> None:
        self.queued.append(("attributes", nodes))


class World:
    """A tree of which the kernel knows everything but /unknown."""

    def __init__(self) -> None:
        self.tree = Tree()
        self.root = self.tree.root
        self.root.node = 1
        self.known: dict[int, object] = {1: self.root}
        self.queue = Recorder()
        self.absent: set[tuple[int, bytes]] = set()
        self.cache = KernelCache(
            self.queue,
            self.tree,
            self.known,
            may_be_absent=lambda parent, name: (parent, name) in self.absent,
        )
        self.priv = self.make(self.root, "priv", directory=True)
        self.file = self.make(self.root, "f")
        self.unknown = self.make(self.root, "unknown", directory=True, known=False)

    def make(
        self, parent: Entry, name: str, *, directory: bool = False, known: bool = True
    ) -> Entry:
        kind = EntryType.DIRECTORY if directory else EntryType.FILE
        entry = self.tree.create(parent, name, kind, writer=1, mtime=1)
        if known:
            entry.node = len(self.known) + 1
            self.known[entry.node] = entry
        return entry

    def tell(self, change: Change, *, foreign: bool = True) -> list[Sent]:
        """Announce a change; return what was queued."""
        self.queue.queued = []
        self.cache.on_change(change, foreign=foreign)
        return self.queue.queued


@pytest.fixture
def world() -> World:
    return World()


def test_a_foreign_write_concerns_pages_and_name(world: World) -> None:
    node = world.file.node
    assert world.tell(Change(Kind.WRITE, "f", world.file)) == [
        ("inode", node, True),
        ("entry", 1, b"f", node, True),
    ]


def test_a_foreign_touch_concerns_attributes(world: World) -> None:
    node = world.file.node
    assert world.tell(Change(Kind.MTIME, "f", world.file)) == [
        ("inode", node, False),
        ("entry", 1, b"f", node, False),
    ]


@pytest.mark.parametrize("kind", [Kind.CREATE, Kind.MKDIR])
def test_what_comes_concerns_its_name(world: World, kind: Kind) -> None:
    assert world.tell(Change(kind, "f", world.file)) == [("entry", 1, b"f", 0, False)]


@pytest.mark.parametrize("kind", [Kind.DELETE, Kind.UNLOCK])
def test_what_goes_concerns_its_name(world: World, kind: Kind) -> None:
    world.tree.remove(world.file, writer=9, mtime=1)
    gone = Change(kind, "f", world.file, source_directory=world.root)
    assert world.tell(gone) == [("entry", 1, b"f", 0, False)]


def test_what_left_a_directory_that_was_renamed_since_concerns_it(world: World) -> None:
    """Changes that come together are told of when all of them are made."""
    directory = world.make(world.root, "d", directory=True)
    world.tree.rename(directory, world.root, "e", writer=9, mtime=1)
    for change in (
        Change(Kind.DELETE, "d/f", world.file, source_directory=directory),
        Change(Kind.RENAME, "f", world.file, "d/f", source_directory=directory),
    ):
        assert ("entry", directory.node, b"f", 0, False) in world.tell(change)


@pytest.mark.parametrize("kind", [Kind.CREATE, Kind.MKDIR])
def test_a_name_that_the_kernel_was_told_absent_is_forgotten(world: World, kind: Kind) -> None:
    new = world.make(world.root, "new", known=False)
    assert world.tell(Change(kind, "new", new)) == []
    world.absent.add((1, b"new"))
    assert world.tell(Change(kind, "new", new)) == [("entry", 1, b"new", 0, False)]


def test_what_goes_unknown_may_have_been_told_absent(world: World) -> None:
    new = world.make(world.root, "new", known=False)
    world.tree.remove(new, writer=9, mtime=1)
    gone = Change(Kind.DELETE, "new", new, source_directory=world.root)
    assert world.tell(gone) == []
    world.absent.add((1, b"new"))
    assert world.tell(gone) == [("entry", 1, b"new", 0, False)]


def test_a_foreign_rename_concerns_both_names_and_the_mode(world: World) -> None:
    world.absent.add((world.priv.node, b"g"))
    world.tree.rename(world.file, world.priv, "g", writer=9, mtime=1)
    priv, node = world.priv.node, world.file.node
    assert world.tell(
        Change(Kind.RENAME, "priv/g", world.file, "f", source_directory=world.root)
    ) == [
        ("entry", 1, b"f", 0, False),
        ("entry", priv, b"g", 0, False),
        ("inode", node, False),
        ("entry", priv, b"g", node, False),
    ]


def test_what_a_foreign_rename_replaces_concerns_its_name(world: World) -> None:
    temporary = world.make(world.root, "f.tmp", known=False)
    world.tree.rename(temporary, world.root, "f", writer=9, mtime=1)
    replaced = Change(Kind.RENAME, "f", temporary, "f.tmp", world.file)
    assert world.tell(replaced) == [("entry", 1, b"f", 0, False)]


def test_what_the_kernel_does_not_know_needs_nothing(world: World) -> None:
    inside = world.make(world.unknown, "f", known=False)
    for kind in (Kind.CREATE, Kind.WRITE):
        assert world.tell(Change(kind, "unknown/f", inside)) == []
    gone = Change(Kind.DELETE, "unknown/f", inside, source_directory=world.unknown)
    assert world.tell(gone) == []


def test_a_write_to_what_the_kernel_does_not_know_needs_nothing(world: World) -> None:
    new = world.make(world.root, "new", known=False)
    assert world.tell(Change(Kind.WRITE, "new", new)) == []


@pytest.mark.parametrize("kind", [Kind.CREATE, Kind.MKDIR, Kind.DELETE, Kind.WRITE, Kind.MTIME])
def test_what_was_done_here_is_told_by_the_reply(world: World, kind: Kind) -> None:
    assert world.tell(Change(kind, "f", world.file), foreign=False) == []


def test_a_rename_here_concerns_the_mode_if_it_changes(world: World) -> None:
    renamed = Change(Kind.RENAME, "g", world.file, "f")
    assert world.tell(renamed, foreign=False) == []
    hidden = Change(Kind.RENAME, "priv/f", world.file, "f")
    assert world.tell(hidden, foreign=False) == [("attributes", [world.file.node])]


def test_a_rename_here_concerns_the_time_if_it_changes(world: World) -> None:
    renamed = Change(Kind.RENAME, "g", world.file, "f", has_new_time=True)
    assert world.tell(renamed, foreign=False) == [("inode", world.file.node, False)]


def test_a_lock_that_is_removed_here_is_gone_without_the_kernels_doing(world: World) -> None:
    world.absent.add((world.priv.node, b"lock"))
    lock = Change(Kind.UNLOCK, "priv/lock", world.file, source_directory=world.priv)
    assert world.tell(lock, foreign=False) == [("entry", world.priv.node, b"lock", 0, False)]


def test_dropped_bytes_concern_the_pages(world: World) -> None:
    world.cache.on_displaced(world.file)
    assert world.queue.queued == [("inode", world.file.node, True)]


def test_the_quorum_concerns_every_mode(world: World) -> None:
    world.cache.on_quorum()
    assert world.queue.queued == [("attributes", list(world.known))]


def test_what_was_taken_back_may_have_been_seen(world: World) -> None:
    moved = world.make(world.root, "moved")
    world.tree.mark_saved()
    world.make(world.root, "new")
    world.tree.write(world.file, 0, b"x", truncate=True, writer=1, mtime=1)
    world.tree.rename(moved, world.root, "other", writer=1, mtime=1)
    world.cache.on_undone(world.tree.rollback(), StoreError("broken"))
    node, parent = world.file.node, world.file.parent
    assert parent is not None
    assert world.queue.queued == [
        ("entry", 1, b"new", 0, False),
        ("inode", node, True),
        ("entry", parent.node, world.file.name.encode(), node, True),
        ("entry", 1, b"other", 0, False),
        ("inode", moved.node, True),
        ("entry", 1, b"moved", moved.node, True),
    ]
