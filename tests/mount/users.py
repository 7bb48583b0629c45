"""Users of a mount: threads that change and look, each at its own pace; what they noticed."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.harness import GRACE, Daemon

REPLACED = 8 << 10  # bytes of a replaced file
NAMES = 32  # that are replaced in turn


class Users:
    """Threads on *root*. Each step is made every *period* seconds, or without a pause for 0."""

    def __init__(self, root: Path, *, period: float) -> None:
        self.counts: dict[str, int] = {}
        self.slowest: dict[str, float] = {}  # seconds
        self.errors: list[str] = []
        self._root = root
        self._period = period
        self._is_over = threading.Event()
        steps: list[Callable[[int], None]] = [
            *(self._replace, self._make_directory, self._append, self._sync),
            *(self._look, self._list, self._read_version),
        ]
        self._threads = [threading.Thread(target=self._repeat, args=(step,)) for step in steps]

    def start(self) -> None:
        """Start the threads."""
        for name in ("replaced", "made", "appended", "synced", "looked-at"):
            (self._root / name).mkdir()
        (self._root / "looked-at" / "file").write_bytes(b"content")
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Have the threads end, and wait for them."""
        self._is_over.set()
        for thread in self._threads:
            thread.join(GRACE)
            assert not thread.is_alive(), "a user waits"

    def __str__(self) -> str:
        slowest = {name: f"{1000 * seconds:.0f} ms" for name, seconds in self.slowest.items()}
        return f"{self.counts}, slowest {slowest}, {len(self.errors)} errors {self.errors[:3]}"

    def _repeat(self, step: Callable[[int], None]) -> None:
        name = step.__name__.strip("_").replace("_", " ")
        number = 0
        while not self._is_over.wait(self._period):
            start = time.monotonic()
            try:
                step(number)
            except OSError as error:
                self.errors.append(f"{name}: {error}")
            self.slowest[name] = max(self.slowest.get(name, 0.0), time.monotonic() - start)
            number += 1
            self.counts[name] = number

    def _replace(self, number: int) -> None:
        temporary = self._root / "replaced" / "file.tmp.1"
        temporary.write_bytes(os.urandom(REPLACED))
        temporary.rename(self._root / "replaced" / f"{number % NAMES}")

    def _make_directory(self, number: int) -> None:
        (self._root / "made" / "directory").mkdir()
        (self._root / "made" / "directory").rmdir()

    def _append(self, number: int) -> None:
        path = self._root / "appended" / "file"
        with path.open("wb" if number % NAMES == 0 else "ab") as file:
            file.write(b"%d\n" % number)

    def _sync(self, number: int) -> None:
        with (self._root / "synced" / "file").open("wb") as file:
            file.write(b"%d\n" % number)
            file.flush()
            os.fsync(file.fileno())

    def _look(self, number: int) -> None:
        assert not (self._root / "looked-at" / f"absent{number}").exists()
        (self._root / "looked-at" / "file").stat()

    def _list(self, number: int) -> None:
        os.listdir(self._root)

    def _read_version(self, number: int) -> None:
        (self._root / ".version").read_bytes()


@contextlib.contextmanager
def users_of(mount: Daemon, *, period: float) -> Iterator[Users]:
    """Have users at work during the block."""
    users = Users(mount.path, period=period)
    users.start()
    try:
        yield users
    finally:
        users.end()
