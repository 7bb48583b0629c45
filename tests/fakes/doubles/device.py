"""A stand-in for the device below the journal: it records its calls, fails, stands still."""

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pmxcfs.storage import segment_file

# What a device can be asked for, with the module that asks, and the function's name there.
CALLS = {
    "write": (os, "pwrite"),
    "sync": (os, "fdatasync"),
    "sync directory": (os, "fsync"),
    "cut": (os, "ftruncate"),
    "reserve": (segment_file, "reserve"),
}


class Device:
    """Passes the calls of this process on, unless it is told to fail or to stand still."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []  # the call, and the name of the file
        self.failures: dict[str, int] = {}  # errno by call
        self.runs = threading.Event()  # clear: writes and syncs stand still
        self.runs.set()
        self.stands_still = threading.Event()  # a call waits for *runs*
        self.only = ""  # if set, only the file with this name fails and has a full device
        self.longest = 1 << 40  # bytes that one write takes

    def count(self, call: str) -> int:
        """Return how often the device has been asked for *call*."""
        return [name for name, _ in self.seen].count(call)

    def names(self, call: str) -> list[str]:
        """Return the names of the files for which the device has been asked for *call*."""
        return [file for name, file in self.seen if name == call]

    def wrapped(self, call: str, real: Callable[..., object]) -> Callable[..., object]:
        """Return the function that stands in for *real*."""

        def function(descriptor: int, *args: object) -> object:
            name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
            self.seen.append((call, name))
            if not self.runs.is_set():
                self.stands_still.set()
                assert self.runs.wait(30)
            if self.only in ("", name) and (code := self.failures.get(call)):
                raise OSError(code, os.strerror(code))
            if call == "write" and self.only in ("", name):
                return self._write(real, descriptor, *args)
            return real(descriptor, *args)

        return function

    def _write(self, real: Callable[..., object], descriptor: int, *args: object) -> object:
        data, offset = args
        assert isinstance(data, bytes | memoryview)
        if self.longest == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        result = real(descriptor, data[: self.longest], offset)
        if self.longest < len(data):
            self.longest = 0
        return result


@contextlib.contextmanager
def device() -> Iterator[Device]:
    """Put a device below this process's files until the block ends."""
    double = Device()
    with pytest.MonkeyPatch.context() as patch:
        for call, (module, name) in CALLS.items():
            patch.setattr(module, name, double.wrapped(call, getattr(module, name)))
        yield double
        double.runs.set()
