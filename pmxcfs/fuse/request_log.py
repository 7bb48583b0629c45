"""Descriptions of kernel requests for debug messages: caller, paths, flags, modes, numbers, sizes.

They contain no content of files and nothing about private entries. Needs the tree's lock.
Contract: docs/spec/operations.md, "Logging".
"""

import errno
import logging
import os
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from pmxcfs._core import Entry
from pmxcfs.errors import PmxcfsError
from pmxcfs.fuse.attributes import Requester, Wanted
from pmxcfs.fuse.node_ids import ROOT
from pmxcfs.status.files import Link, Snapshot, Switch
from pmxcfs.text import to_text
from pmxcfs.tree.modes import PRIVATE

_log = logging.getLogger("pmxcfs.fuse")

OPENING = frozenset({"open", "opendir", "create"})  # requests whose answer has a handle
_BY_HANDLE = frozenset({"read", "write", "flush", "fsync", "release"})
_BY_LISTING = frozenset({"readdir", "releasedir", "fsyncdir"})
_ENDS = frozenset({"release", "releasedir"})
_SECOND_NODE = {"rename": 2, "link": 1}  # index of the argument that is a second node id
_FLAGS = {"open": 1, "create": 3}  # index of the argument that has the flags of open(2)
_MODE = {"create": 2, "mkdir": 2, "mknod": 2}  # index of the argument that is a mode
_ATTRIBUTES = ("mode", "uid", "gid", "size", "mtime")  # that a setattr request can set
_ACCESS = {os.O_RDONLY: "O_RDONLY", os.O_WRONLY: "O_WRONLY", os.O_RDWR: "O_RDWR"}
_NAMED_FLAGS = {
    getattr(os, name): name
    for name in ("O_CREAT", "O_EXCL", "O_TRUNC", "O_APPEND", "O_NONBLOCK", "O_DIRECT", "O_SYNC")
}

_NAMED_FLAGS[0o100000] = "O_LARGEFILE"  # the kernel's number on x86; Python has 0


class LoggedRequest:
    """A request in debug mode: logged with its outcome and duration when the block ends."""

    def __init__(self, name: str, subject: str, caller: str, callers: dict[int, str]) -> None:
        self.outcome = "ok"
        self._name = name
        self._subject = subject
        self._caller = caller
        self._callers = callers

    def note_handle(self, handle: int) -> None:
        """Remember who opened *handle*."""
        self._callers[handle] = self._caller

    def __enter__(self) -> Self:
        self._start_ns = time.perf_counter_ns()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        microseconds = (time.perf_counter_ns() - self._start_ns) // 1000
        if isinstance(error, PmxcfsError):
            self.outcome = f"{errno.errorcode.get(error.errno, error.errno)}: {error}"
        elif error is not None:
            self.outcome = "EIO"
        if self._subject == PRIVATE:
            self.outcome = self.outcome.partition(":")[0]
        parts = (self._name, self._subject, self._caller, self.outcome, microseconds)
        _log.debug("%s %s [%s] -> %s (%d us)", *parts)


class RequestLog:
    """Describes requests, and remembers who opened what: a request by handle does not tell."""

    def __init__(
        self,
        nodes: Mapping[int, object],
        handles: Mapping[int, object],
        directories: Mapping[int, object],
    ) -> None:
        self._nodes = nodes
        self._handles = handles
        self._directories = directories
        self._callers: dict[int, str] = {}  # by handle

    def begin(
        self, name: str, arguments: tuple[object, ...], requester: Requester | None
    ) -> LoggedRequest:
        """Return a context that logs the request *name*; None: its process is not known."""
        caller = f"pid {requester.pid} uid {requester.uid}" if requester is not None else ""
        if not caller and arguments and isinstance(arguments[0], int):
            known = self._callers.get(arguments[0])
            caller = f"opened by {known}" if known else "opened before debug mode"
        if name in _ENDS and isinstance(arguments[0], int):
            self._callers.pop(arguments[0], None)
        return LoggedRequest(name, self._subject(name, arguments), caller, self._callers)

    def clear(self) -> None:
        """Forget the callers, as what ends while debug mode is off is not seen."""
        self._callers.clear()

    def _subject(self, name: str, arguments: tuple[object, ...]) -> str:
        number = arguments[0] if arguments and isinstance(arguments[0], int) else ROOT
        by_handle = name in _BY_HANDLE
        table = self._nodes
        if by_handle or name in _BY_LISTING:
            table = self._handles if by_handle else self._directories
        words = [_described(table.get(number))]
        for index, argument in enumerate(arguments[1:], start=1):
            if isinstance(argument, int):
                words.append(self._number(name, index, argument))
            elif isinstance(argument, bytes):
                words.append(f"{len(argument)} bytes" if by_handle else to_text(argument))
            elif isinstance(argument, Wanted):
                words += _changes(argument)
                break
        return PRIVATE if PRIVATE in words else " ".join(words)

    def _number(self, name: str, index: int, number: int) -> str:
        if index == _SECOND_NODE.get(name):
            return _described(self._nodes.get(number))
        if index == _FLAGS.get(name):
            return _flags(number)
        return f"0{number:o}" if index == _MODE.get(name) else str(number)


def _changes(wanted: Wanted) -> list[str]:
    """Return the attributes that a setattr request changes."""
    values = [(name, getattr(wanted, name)) for name in _ATTRIBUTES]
    return [
        f"{name} 0{value & 0o7777:o}" if name == "mode" else f"{name} {value}"
        for name, value in values
        if value is not None
    ]


def _flags(number: int) -> str:
    names = [_ACCESS.get(number & os.O_ACCMODE, "O_ACCMODE")]
    left = number & ~os.O_ACCMODE
    for flag, name in _NAMED_FLAGS.items():
        if left & flag == flag:
            names.append(name)
            left &= ~flag
    return "|".join([*names, f"0{left:o}"] if left else names)


def _described(found: object) -> str:
    if found is None:
        return PRIVATE  # an unknown object may be a private one
    if isinstance(found, Entry):
        return PRIVATE if found.private else f"/{found.path}"
    if isinstance(found, Snapshot):
        return f"/{found.file.name}"
    if isinstance(found, Link | Switch):
        return f"/{found.name}"
    entry = getattr(found, "entry", None)  # an open file or directory
    return "/" if entry is None else _described(entry)
