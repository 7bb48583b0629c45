"""Writers that change a mount until its daemon is killed, and know the states that may be left.

Each writer works in a directory of its own, one system call after the other. So it knows which
states a crash may leave: the state after the last operation that returned (close, fsync, truncate,
mkdir, rmdir, unlink, rename, utime), and the states that the operation in progress goes through.
After the next start any other state is a violation. Contract: docs/spec/storage.md.
"""

import contextlib
import errno
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

from pmxcfs.host.mountpoint import DEAD

PATIENCE = 60.0  # seconds for an answer of a writer
EARLIEST_TIMER = 0.9  # seconds after which the daemon may have published what is not closed yet
# Half of them are names of files whose changes may be staged in memory.
SMALL_NAMES = ("0", "1", "2", "lrm_status", "manager_status", "lrm_status.tmp.1")
TEMPORARY = "lrm_status.tmp.2"
DIRECTORIES = ("", "left/", "right/")
BIG_NAME = "big"
SMALL_SIZES = (1, 100, 511, 4096, 20_000)  # bytes
BIG_SIZES = (300_000, 500_000, 900_000)
PAGE = 4096  # bytes
CHUNK = 65536  # bytes that the kernel hands over in one request


class File(NamedTuple):
    """A file as its writer knows it; *mtime* is set only if the writer has set it."""

    content: bytes
    mtime: int | None = None

    def allows(self, found: "File | None") -> bool:
        """Tell whether *found* on the mount is this file."""
        return (
            isinstance(found, File)
            and found.content == self.content
            and self.mtime in (None, found.mtime)
        )

    def __str__(self) -> str:
        first, last = self.content[:16], self.content[-16:]
        return f"{len(self.content)} bytes {first!r}...{last!r} mtime {self.mtime}"


State = Mapping[str, File | None]  # by path; None is a directory
Change = Mapping[str, File | str | None]  # the same; GONE for what is removed
GONE = "gone"


class Possible(NamedTuple):
    """A state that a crash may leave, if it comes at *since* (monotonic seconds) or later.

    It is that after a write to *path*, from *start* on. The kernel may divide a write at the end of
    each page, so that only its beginning is there.
    """

    state: State
    since: float = 0.0
    path: str = ""  # empty: not after a write
    start: int = 0

    def all(self) -> Iterator[State]:
        """Yield this state, and those after the beginnings of the write."""
        yield self.state
        written = self.state.get(self.path)
        if isinstance(written, File):
            first = self.start - self.start % PAGE + PAGE
            for end in range(first, len(written.content), PAGE):
                yield {**self.state, self.path: File(written.content[:end])}


class Journal:
    """The states that a crash may leave now."""

    def __init__(self, state: State) -> None:
        self._possible = [Possible(state)]
        self.operations = 0  # that have returned
        self.mutations = 0  # that they make at least; each raises the tree's version
        self._begun = 0

    @property
    def state(self) -> State:
        """The state of the mount without a crash."""
        return self._possible[-1].state

    def begin(self, change: Change) -> None:
        """Note that a system call will make *change*."""
        self.note(Possible(self._after(change)))
        self._begun += 1

    def note(self, possible: Possible) -> None:
        """Note a state that is possible from now on."""
        self._possible.append(possible)

    def draft(self, path: str, content: bytes, *, start: int, since: float) -> None:
        """Note that a write from *start* on will lead to *content*.

        Only the timer publishes it, after *since*.
        """
        self.note(Possible(self._after({path: File(content)}), since, path, start))

    def promise(self, *, is_synced: bool = False) -> None:
        """Note that an operation has returned: earlier states are no longer possible.

        With *is_synced* the device has all of it.
        """
        del self._possible[:-1]
        self.operations += 1
        self.mutations += self._begun
        self._begun = 0

    def possible(self, *, was_stopped: bool) -> list[State]:
        """Return the states that a crash at this moment may leave.

        Those of drafts all are if the daemon *was_stopped* before.
        """
        now = time.monotonic()
        reached = (one for one in self._possible if was_stopped or one.since <= now)
        return [state for one in reached for state in one.all()]

    def _after(self, change: Change) -> State:
        state = {**self.state}
        for path, node in change.items():
            if isinstance(node, str):
                del state[path]
            else:
                state[path] = node
        return state


class Writer:
    """Random operations below *root*, noted in *journal* before they start."""

    def __init__(self, root: Path, journal: Journal, source: random.Random) -> None:
        self._root = root
        self._journal = journal
        self._random = source
        self._noise = source.randbytes(1 << 20)
        self._operations: Sequence[Callable[[], None]] = (
            *(self._overwrite, self._synced, self._replace, self._truncate),
            *(self._stamp, self._remove, self._move, self._make, self._beside),
            *(self._mkdir, self._rmdir, self._touch),
        )

    def run(self) -> None:
        """Change the mount until the daemon dies. Raise OSError if an operation fails before."""
        try:
            while True:
                self._random.choice(self._operations)()
        except OSError as error:
            # EIO is for a request that the kernel was just handing to the daemon that died.
            if error.errno not in DEAD and not (error.errno == errno.EIO and self._is_dead()):
                raise

    def _is_dead(self) -> bool:
        try:
            os.statvfs(self._root)
        except OSError as error:
            return error.errno in DEAD
        return False

    # The operations; each does nothing if there is nothing to do it on.

    def _make(self) -> None:
        """Create a file, write, close."""
        if path := self._free():
            self._fill(self._create(path), path, self._content(path))

    def _touch(self) -> None:
        """Create a file and close it; without a write that promises nothing."""
        if path := self._free():
            os.close(self._create(path))

    def _overwrite(self) -> None:
        """Open with O_TRUNC, write, close."""
        if path := self._file():
            descriptor = os.open(self._root / path, os.O_WRONLY | os.O_TRUNC)
            since = time.monotonic() + EARLIEST_TIMER
            self._journal.draft(path, b"", start=0, since=since)
            self._fill(descriptor, path, self._content(path))

    def _synced(self) -> None:
        """Write at the end, fsync, write more, close."""
        if path := self._file():
            with self._opened(path, os.O_WRONLY | os.O_APPEND) as descriptor:
                content = self._append(descriptor, path, self._content(path)[:5000])
                self._journal.begin({path: File(content)})
                os.fsync(descriptor)
                self._journal.promise(is_synced=True)
                content = self._append(descriptor, path, b"and more")
                self._journal.begin({path: File(content)})
            self._journal.promise()

    def _replace(self) -> None:
        """Write a temporary file and rename it over another, or to a new name."""
        if path := self._file() or self._free():
            if TEMPORARY in self._journal.state:  # from before a crash
                with self._promised({TEMPORARY: GONE}):
                    (self._root / TEMPORARY).unlink()
            content = self._content(path)
            self._fill(self._create(TEMPORARY), TEMPORARY, content)
            with self._promised({TEMPORARY: GONE, path: File(content)}):
                (self._root / TEMPORARY).rename(self._root / path)

    def _truncate(self) -> None:
        if path := self._file():
            before = self._content_of(path)
            size = self._random.choice((0, len(before) // 2, len(before) + 10))
            content = before[:size].ljust(size, b"\0")
            with self._promised({path: File(content)}):
                os.truncate(self._root / path, size)

    def _stamp(self) -> None:
        if path := self._file():
            mtime = self._random.randrange(1, 1 << 32)
            with self._promised({path: File(self._content_of(path), mtime)}):
                os.utime(self._root / path, (mtime, mtime))

    def _remove(self) -> None:
        if path := self._file():
            with self._promised({path: GONE}):
                (self._root / path).unlink()

    def _move(self) -> None:
        """Rename a file, across directories, onto another or to a new name."""
        source, target = self._file(), self._free() or self._file()
        if source and target and source != target and BIG_NAME not in (source, target):
            with self._promised({source: GONE, target: File(self._content_of(source))}):
                (self._root / source).rename(self._root / target)

    def _beside(self) -> None:
        """Make a directory while a new file is open: the directory is never there without it."""
        path, directory = self._free(), f"{self._random.choice(DIRECTORIES)}beside"
        if path and self._has_place(directory) and directory not in self._journal.state:
            descriptor = self._create(path)
            with _closed_on_failure(descriptor), self._promised({directory: None}):
                (self._root / directory).mkdir()
            self._fill(descriptor, path, self._content(path))

    def _mkdir(self) -> None:
        paths = ("left", "right", *(f"{above}empty" for above in DIRECTORIES))
        path = self._random.choice(paths)
        if self._has_place(path) and path not in self._journal.state:
            with self._promised({path: None}):
                (self._root / path).mkdir()

    def _rmdir(self) -> None:
        state = self._journal.state
        empty = [
            path
            for path, node in state.items()
            if node is None and not any(other.startswith(f"{path}/") for other in state)
        ]
        if empty:
            path = self._random.choice(empty)
            with self._promised({path: GONE}):
                (self._root / path).rmdir()

    # ReportSources of the operations.

    @contextlib.contextmanager
    def _promised(self, change: Change) -> Iterator[None]:
        self._journal.begin(change)
        yield
        self._journal.promise()

    def _create(self, path: str) -> int:
        self._journal.begin({path: File(b"")})
        return os.open(self._root / path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)

    @contextlib.contextmanager
    def _opened(self, path: str, flags: int) -> Iterator[int]:
        descriptor = os.open(self._root / path, flags)
        with _closed_on_failure(descriptor):
            yield descriptor
        os.close(descriptor)

    def _fill(self, descriptor: int, path: str, content: bytes) -> None:
        """Write into an empty file and close, which promises all of it."""
        since = time.monotonic() + EARLIEST_TIMER
        with _closed_on_failure(descriptor):
            for start in range(0, len(content), CHUNK):
                end = start + CHUNK
                self._journal.draft(path, content[:end], start=start, since=since)
                os.write(descriptor, content[start:end])
        self._journal.begin({path: File(content)})
        os.close(descriptor)
        self._journal.promise()

    def _append(self, descriptor: int, path: str, data: bytes) -> bytes:
        before = self._content_of(path)
        content = before + data
        since = time.monotonic() + EARLIEST_TIMER
        self._journal.draft(path, content, start=len(before), since=since)
        os.write(descriptor, data)
        return content

    def _content_of(self, path: str) -> bytes:
        node = self._journal.state[path]
        assert isinstance(node, File)
        return node.content

    def _content(self, path: str) -> bytes:
        size = self._random.choice(BIG_SIZES if path == BIG_NAME else SMALL_SIZES)
        start = self._random.randrange(len(self._noise) - size)
        return self._noise[start : start + size]

    def _file(self) -> str:
        """Return the path of a file; empty if there is none."""
        nodes = self._journal.state.items()
        paths = [path for path, node in nodes if node is not None and path != TEMPORARY]
        return self._random.choice(paths) if paths else ""

    def _free(self) -> str:
        """Return a path where a file could be; empty if there is none."""
        paths = [f"{above}{name}" for above in DIRECTORIES for name in SMALL_NAMES]
        paths = [path for path in (BIG_NAME, *paths) if self._has_place(path)]
        free = [path for path in paths if path not in self._journal.state]
        return self._random.choice(free) if free else ""

    def _has_place(self, path: str) -> bool:
        directory = path.rpartition("/")[0]
        return not directory or directory in self._journal.state


@contextlib.contextmanager
def _closed_on_failure(descriptor: int) -> Iterator[None]:
    try:
        yield
    except OSError:
        with contextlib.suppress(OSError):
            os.close(descriptor)
        raise


def snapshot(root: Path) -> State:
    """Return all that is below *root*."""
    state: dict[str, File | None] = {}
    waiting = [root]
    while waiting:
        for path in waiting.pop().iterdir():
            name = str(path.relative_to(root))
            if path.is_dir():
                state[name] = None
                waiting.append(path)
            else:
                state[name] = File(path.read_bytes(), int(path.stat().st_mtime))
    return state


def difference(wanted: State, found: State) -> list[str]:
    """Return the differences of *found* from *wanted*, one line for each path."""
    lines = []
    for path in sorted(wanted.keys() | found.keys()):
        if path not in found:
            lines.append(f"{path} is missing")
        elif path not in wanted:
            lines.append(f"{path} is too much")
        else:
            before, now = wanted[path], found[path]
            same = now is None if before is None else before.allows(now)
            if not same:
                lines.append(f"{path} is {now or 'a directory'}, not {before or 'a directory'}")
    return lines


class Report(NamedTuple):
    """A writer's work since its last report, and the violations that it last found."""

    operations: int
    mutations: int
    violations: list[str]


def write_until_killed(connection: Connection, directory: Path, seed: int) -> None:
    """Run a writer until the other end of *connection* is closed.

    The commands that begin with ``look`` compare the mount with the possible states, ``work``
    changes the mount until it is dead.
    """
    source = random.Random(seed)
    journal = Journal({})
    with contextlib.suppress(EOFError, ConnectionResetError), contextlib.ExitStack() as held:
        while True:
            command = connection.recv()
            if command != "work":
                held.close()
                directory.mkdir(exist_ok=True)
                root = held.enter_context(_held(directory))
                possible = journal.possible(was_stopped=command == "look after a stop")
                state, violations = _look(root, possible, directory.name)
                journal = Journal(state)
                connection.send(Report(0, 0, violations))
            else:
                violations = _work(root, journal, source)
                connection.send(Report(journal.operations, journal.mutations, violations))


@contextlib.contextmanager
def _held(directory: Path) -> Iterator[Path]:
    """Return a path that leads to the mount even when it is dead and detached."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _look(root: Path, possible: Sequence[State], name: str) -> tuple[State, list[str]]:
    found = snapshot(root)
    differences = sorted((difference(state, found) for state in possible), key=len)
    if not differences[0]:
        return found, []
    nearest = "; ".join(differences[0])
    return found, [f"{name}: none of {len(possible)} possible states, the nearest: {nearest}"]


def _work(root: Path, journal: Journal, source: random.Random) -> list[str]:
    try:
        Writer(root, journal, source).run()
    except OSError as error:
        return [f"refused: {error}"]
    return []


class Writers:
    """Some writer processes; ``close`` ends them."""

    def __init__(self, mountpoint: Path, seed: int, *, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connections: list[Connection] = []
        self._processes = []
        for number in range(count):
            mine, theirs = context.Pipe()
            arguments = (theirs, mountpoint / f"writer{number}", seed + number)
            process = context.Process(target=write_until_killed, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._connections.append(mine)
            self._processes.append(process)

    def look(self, *, was_stopped: bool = False) -> list[str]:
        """Return the violations that the mount shows. A daemon that *was_stopped* published all."""
        self._send("look after a stop" if was_stopped else "look")
        return [line for report in self._receive() for line in report.violations]

    def start(self) -> None:
        """Let all writers change the mount until it dies."""
        self._send("work")

    def wait(self, seconds: float) -> bool:
        """Return after *seconds*, or True when a writer has stopped by itself."""
        return bool(wait(self._connections, seconds))

    def reports(self) -> list[Report]:
        """Return the reports since ``start``; call it when the mount is dead."""
        return self._receive()

    def close(self) -> None:
        """End the processes; they must not be changing a live mount."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join(PATIENCE)
            process.kill()
            process.join()

    def _send(self, command: str) -> None:
        for connection in self._connections:
            connection.send(command)

    def _receive(self) -> list[Report]:
        for connection in self._connections:
            assert connection.poll(PATIENCE), "a writer does not answer"
        return [connection.recv() for connection in self._connections]
