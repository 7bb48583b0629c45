"""The adoption of another tree: the kernel's caches are right within 100 ms.

Random trees that share inodes, names and paths follow one another, while other processes access all
paths. Each file of the previous tree is open and mapped. A descriptor shows the new content if
inode and path are still the same, and the old content otherwise.
"""

import contextlib
import errno
import json
import mmap
import os
import random
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from pmxcfs._core import Entry, Tree
from pmxcfs.messages import EntryType, Record
from pmxcfs.storage.create import making
from pmxcfs.storage.database import inspect, whole_batch
from pmxcfs.tree.modes import mode_of
from tests.fakes.data.trees import ROOT, directory, file, made_a_tree, tree_of
from tests.harness import Daemon, mounted, wait_for
from tests.mount.ledger import GRACE, Ledger
from tests.mount.observed import published, status
from tests.places import PROGRAMS

pytestmark = pytest.mark.needs_fuse

PATIENCE = 60.0  # seconds for a process to end
TREES = 25
INODES = range(10, 90)
FIXED = (
    directory(2, "d"),
    directory(3, "priv"),
    directory(4, "nodes"),
    directory(5, "n", parent=4),
)
PLACES = (0, 2, 3, 5, *INODES[:12])
NAMES = (b"a", b"b", b"priv", b"100.start", b"\xc3\xa4", b"c", b"e", b"f")
SIZES = (1, 100, 4095, 4096, 3 * 4096 + 5)
ONLOOKER = PROGRAMS / "onlooker.py"
MANY = 10_000


class Seen(NamedTuple):
    """The entry at a path, as a process sees it."""

    mode: int
    size: int
    mtime: int
    content: bytes | None
    names: frozenset[str] | None


def save(tree: Tree, path: Path) -> Path:
    """Write *tree* into a new database."""
    with making(path, now=1) as database:
        database.save(whole_batch(tree), None)
    return path


def adopt(mount: Daemon, tree: Tree) -> None:
    """Let the daemon adopt *tree*."""
    mount.control("adopt", path=str(save(tree, mount.state / "leader.db")))


@contextlib.contextmanager
def mounted_tree(workdir: Path, tree: Tree, *flags: str) -> Iterator[Daemon]:
    """Mount a database that holds *tree*."""
    (workdir / "state").mkdir(mode=0o750)
    save(tree, workdir / "state" / "config.db")
    with mounted(workdir, "--test-control", *flags) as mount:
        yield mount


class Chance:
    """A generator of random trees, each made from the previous one."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._entries = {inode: self._entry(inode) for inode in INODES}
        self._version = 100

    def next_tree(self) -> Tree:
        """Change about half of the entries in one way or another."""
        for inode in INODES:
            if self._chance.random() < 0.5:
                self._entries[inode] = self._changed(self._entries[inode])
        self._version += 1
        present = [entry for entry in self._entries.values() if self._chance.random() < 0.9]
        return tree_of(
            *FIXED, *made_a_tree(present, below=FIXED), root=ROOT._replace(version=self._version)
        )

    def _entry(self, inode: int) -> Record:
        make = directory if inode in INODES[:12] else file
        return self._changed(make(inode, "x"), anew=True)

    def _changed(self, record: Record, *, anew: bool = False) -> Record:
        what = "all" if anew else self._chance.choice(["content", "mtime", "place", "all", "type"])
        if what == "type":
            kind = EntryType.FILE + EntryType.DIRECTORY - record.type
            data = None if kind == EntryType.DIRECTORY else b"was a directory"
            record = record._replace(type=kind, data=data)
        if what in ("content", "all") and record.type == EntryType.FILE:
            letter = bytes([self._chance.choice(b"abcdefgh")])
            record = record._replace(data=letter * self._chance.choice(SIZES))
        if what in ("place", "all"):
            place, name = self._chance.choice(PLACES), self._chance.choice(NAMES)
            record = record._replace(parent=place, name=name)
        return record._replace(mtime=self._chance.randrange(1_000_000, 2_000_000))


class Open:
    """An open descriptor of a file and a mapping of its pages."""

    def __init__(self, root: Path, entry: Entry) -> None:
        self.inode, self.path, self.content = entry.inode, entry.path, entry.content
        self._fd = os.open(root / entry.path, os.O_RDONLY)
        self._pages = None
        if self.content:
            self._pages = mmap.mmap(self._fd, 0, prot=mmap.PROT_READ)
            assert self._pages[:] == self.content

    def wanted(self, tree: Tree) -> bytes:
        """Return the content that the descriptor must show after the adoption."""
        entry = tree.get(self.inode)
        if entry is None or entry.path != self.path or entry.is_directory:
            return self.content
        return entry.content

    def read(self) -> bytes:
        return os.pread(self._fd, 1 << 20, 0)

    def mapped(self, size: int) -> bytes:
        return self._pages[:size] if self._pages is not None else b""

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    @property
    def length(self) -> int:
        return len(self._pages) if self._pages is not None else 0

    def close(self) -> None:
        if self._pages is not None:
            self._pages.close()
        os.close(self._fd)


def look(path: Path) -> Seen | None:
    """Return what a process sees at *path*."""
    try:
        found = path.lstat()
        if stat.S_ISDIR(found.st_mode):
            names = frozenset(os.listdir(path))
            return Seen(found.st_mode, 0, int(found.st_mtime), None, names)
        content = path.read_bytes()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise
    return Seen(found.st_mode, found.st_size, int(found.st_mtime), content, None)


def wanted_at(tree: Tree, path: str) -> Seen | None:
    """Return what a process must see at *path*."""
    entry = tree.find(path)
    if entry is None:
        return None
    names = frozenset(child.name for child in entry.children()) if entry.is_directory else None
    content = None if entry.is_directory else entry.content
    return Seen(mode_of(entry, quorate=True), entry.size, entry.mtime, content, names)


def walk(tree: Tree) -> list[Entry]:
    entries = tree.root.children()
    for entry in entries:
        entries += entry.children()
    return entries


@contextlib.contextmanager
def onlooking(count: int = 2) -> Iterator[Callable[[Path], None]]:
    """Run processes that access every path that they are given, all the time."""
    processes = [
        subprocess.Popen(
            [sys.executable, ONLOOKER, str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(count)
    ]

    def look_at(path: Path) -> None:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(f"{path}\n")
            process.stdin.flush()

    try:
        yield look_at
    finally:
        looks = [int(process.communicate(timeout=PATIENCE)[0]) for process in processes]
    assert min(looks) > 0


@pytest.mark.parametrize("workers", ["5", "16"])
def test_nothing_is_stale_after_an_adoption(
    tmp_path: Path, workers: str, report: Callable[[object], None]
) -> None:
    chance = Chance(seed=int(workers))
    tree = chance.next_tree()
    paths = {entry.path for entry in walk(tree)}
    with mounted_tree(tmp_path, tree, "--workers", workers) as mount, onlooking() as look_at:
        ledger = Ledger(mount)
        for path in paths:
            look_at(mount.path / path)
        for _ in range(TREES):
            descriptors = [Open(mount.path, e) for e in walk(tree) if not e.is_directory]
            tree = chance.next_tree()
            fresh = {entry.path for entry in walk(tree)} - paths
            for path in fresh:
                assert look(mount.path / path) is None  # a negative name
                look_at(mount.path / path)
            paths |= fresh
            ledger.begin()
            adopt(mount, tree)
            time.sleep(GRACE)
            compare(mount, tree, paths, descriptors, ledger)
            for descriptor in descriptors:
                descriptor.close()
    assert ledger.stale == []
    assert set(ledger.checks) == {"path", "negative name", "descriptor", "mapping", "size"}
    assert ledger.late < sum(ledger.checks.values()) / 100
    report(f"{dict(ledger.checks)} compared, {ledger.late} late, {ledger.starved} starved")


def compare(
    mount: Daemon, tree: Tree, paths: set[str], descriptors: list[Open], ledger: Ledger
) -> None:
    """Compare every path that has ever existed, and every descriptor."""
    for path in sorted(paths):
        wanted = wanted_at(tree, path)
        kind = "negative name" if wanted is None else "path"
        ledger.check(kind, path, partial(look, mount.path / path), wanted)
    for each in descriptors:
        content = each.wanted(tree)
        size = min(each.length, len(content))
        ledger.check("descriptor", each.path, each.read, content)
        ledger.check("mapping", each.path, partial(each.mapped, size), content[:size])
        ledger.check("size", each.path, each.size, len(content))


# Unpublished bytes

OURS = (directory(2, "priv"), directory(3, "d"), file(4, "f", b"abcdef"))


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Daemon]:
    with mounted_tree(tmp_path, tree_of(*OURS)) as mount:
        mount.publish_only_on_request()
        yield mount


def become(mount: Daemon, *records: Record) -> None:
    adopt(mount, tree_of(*records, root=ROOT._replace(version=99)))


def open_and_write(mount: Daemon) -> int:
    """Return a descriptor of f with two unpublished bytes."""
    fd = os.open(mount.path / "f", os.O_RDWR)
    os.pwrite(fd, b"XX", 1)
    assert published(mount, "f") == b"abcdef"
    return fd


def test_unpublished_bytes_stay_over_the_adopted_content(mount: Daemon) -> None:
    fd = open_and_write(mount)
    become(mount, *OURS[:2], file(4, "f", b"ABCDEFGH", version=80))
    wait_for(lambda: (mount.path / "f").read_bytes() == b"AXXDEFGH", mount)
    os.close(fd)
    assert published(mount, "f") == b"AXXDEFGH"


def test_unpublished_bytes_of_a_file_that_was_removed_are_lost(mount: Daemon) -> None:
    mount.expect_log("the last writes to f are lost: ENOENT")
    fd = open_and_write(mount)
    become(mount, *OURS[:2])
    assert os.pread(fd, 99, 0) == b"aXXdef"
    with pytest.raises(FileNotFoundError):
        os.close(fd)
    wait_for(lambda: look(mount.path / "f") is None, mount)


def test_unpublished_bytes_of_a_file_that_was_replaced_are_lost(mount: Daemon) -> None:
    mount.expect_log("the last writes to f are lost: ESTALE")
    fd = open_and_write(mount)
    become(mount, *OURS[:2], file(5, "f", b"another"))
    with pytest.raises(OSError, match="Stale file handle"):
        os.close(fd)
    wait_for(lambda: (mount.path / "f").read_bytes() == b"another", mount)


def test_a_public_descriptor_never_shows_a_private_file(mount: Daemon) -> None:
    mount.expect_log("the last writes to f are lost: ENOENT")
    fd = open_and_write(mount)
    become(mount, *OURS[:2], file(4, "f", b"secret", parent=2))
    mount.wait_until_notified()
    assert os.pread(fd, 99, 0) == b"aXXdef"
    with pytest.raises(FileNotFoundError):
        os.close(fd)
    assert (mount.path / "priv/f").read_bytes() == b"secret"
    assert stat.S_IMODE((mount.path / "priv/f").stat().st_mode) == 0o600


def test_a_write_goes_on_after_the_adoption(mount: Daemon) -> None:
    with (mount.path / "f").open("r+b", buffering=0) as opened:
        become(mount, *OURS[:2], file(4, "f", b"ABC", version=80))
        opened.seek(3)
        opened.write(b"more")
    assert published(mount, "f") == b"ABCmore"


# Counters, locks and directories in use


def test_changes_made_in_local_mode_are_kept_as_conflict_copies(tmp_path: Path) -> None:
    ours = (*OURS, file(5, "corosync.conf", b"totem {}"))
    with mounted_tree(tmp_path, tree_of(*ours)) as mount:
        mount.expect_log("only this node has changed \\(1\\); a copy .* is .*/conflicts/")
        mount.expect_log("replaced by another node's version: f$")
        (mount.path / "f").write_bytes(b"repaired by hand")
        become(mount, *ours)
        wait_for(lambda: (mount.path / "f").read_bytes() == b"abcdef", mount)
        (copy,) = (mount.state / "conflicts").glob("*.db")
        assert {record.data for record in inspect(copy).records} > {b"repaired by hand"}


def test_an_adoption_raises_every_counter_once(mount: Daemon) -> None:
    before = status(mount, ".version")
    guest = (directory(10, "nodes"), directory(11, "n", parent=10), directory(12, "lxc", parent=11))
    become(mount, *OURS, *guest, file(13, "100.conf", parent=12))
    mount.wait_until_notified()
    after = status(mount, ".version")
    counters = [key for key, value in before.items() if isinstance(value, int)]
    raised = {key for key in counters if after[key] == before[key] + 1}
    assert raised == set(counters) - {"starttime", "clinfo"}
    assert json.loads((mount.path / ".vmlist").read_bytes())["ids"]["100"]["node"] == "n"


def test_a_known_lock_keeps_its_age(mount: Daemon) -> None:
    lock = (directory(10, "lock", parent=2), directory(11, "x", parent=10))
    become(mount, *OURS, *lock)
    mount.control("lock-lifetime", seconds=0.05)
    time.sleep(0.05)
    become(mount, *OURS[:2], *lock)
    os.utime(mount.path / "priv/lock/x", (0, 0))
    # The kernel is notified of the removal soon after the answer, as of another node's.
    wait_for(lambda: look(mount.path / "priv/lock/x") is None, mount)


def test_a_working_directory_that_was_removed_is_gone(mount: Daemon) -> None:
    (mount.path / "d/sub").mkdir()
    (mount.path / "d/sub/file").write_bytes(b"x")
    fd = os.open(mount.path / "d/sub", os.O_RDONLY)
    try:
        assert os.stat("file", dir_fd=fd).st_size == 1
        become(mount, *OURS)
        mount.wait_until_notified()
        with pytest.raises(FileNotFoundError):
            os.stat("file", dir_fd=fd)
        with pytest.raises(FileNotFoundError):
            os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    finally:
        os.close(fd)


def test_an_adoption_can_change_thousands_of_entries(
    tmp_path: Path, report: Callable[[object], None]
) -> None:
    ours = [directory(2, "d"), *[file(10 + n, f"f{n}", b"ours", parent=2) for n in range(MANY)]]
    theirs = [record._replace(data=b"of them") for record in ours[1:]]
    root = ROOT._replace(version=2 * MANY)
    with mounted_tree(tmp_path, tree_of(*ours, root=root)) as mount:
        paths = [mount.path / f"d/f{n}" for n in range(MANY)]
        for path in paths:
            assert path.read_bytes() == b"ours"
        root = root._replace(version=root.version + 1)
        leader = save(tree_of(ours[0], *theirs, root=root), tmp_path / "l.db")
        began = time.monotonic()
        mount.control("adopt", path=str(leader))
        adopted = time.monotonic()
        mount.wait_until_notified()
        handed = time.monotonic()
        for path in paths:
            assert path.read_bytes() == b"of them"
    report(
        f"{MANY} files: adopted in {adopted - began:.2f} s, "
        f"the kernel was told after {handed - adopted:.2f} s more"
    )
