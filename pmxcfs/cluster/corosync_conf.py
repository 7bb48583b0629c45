"""Updates of the host's corosync.conf from the corosync.conf in the tree.

``refusal`` and corosync's own test decide whether the host's file may be replaced. ``HostConfig``
writes the file, keeps the one before it, and has corosync reload it (``corosync_reload``). If there
is no connection to corosync, it also tells whether the host's file is the reason. All of this can
block, so a separate thread does it, and message delivery goes on.

Contract: docs/spec/operations.md, "corosync.conf".
"""

import contextlib
import logging
import os
import re
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from pmxcfs.cluster import corosync_check
from pmxcfs.cluster.corosync_check import Cancelled
from pmxcfs.cluster.corosync_reload import Reload
from pmxcfs.errors import PmxcfsError
from pmxcfs.host.files import replace_file
from pmxcfs.host.log_limit import LogLimit
from pmxcfs.host.process import lower_priority
from pmxcfs.host.threads import BackgroundThread

RELOAD_DELAY = 1.0  # seconds from writing the file to the reload, so that all nodes have it by then
RETRY_INTERVAL = 30.0  # seconds until what has failed is tried again
MODE = 0o644  # permission bits of the host's file
PREVIOUS = ".previous"  # ends the name of the file that was replaced last

MAX_DIGITS = 20  # of a config_version, so that its value is quickly known
MAX_VERSION = (1 << 64) - 1  # a larger one ends corosync by a failed assertion

_VERSION = re.compile(rb"config_version\s*:\s*(\d+)(\w*)")  # number, and what it must not have
_log = logging.getLogger("pmxcfs.confdb")


def version_of(content: bytes) -> int | None:
    """Return the config_version of a corosync.conf, or None if it has no valid one.

    The first match counts, also in a comment. A valid one is from 1 to MAX_VERSION, in decimal.
    """
    found = _VERSION.search(content)
    if found is None or found[2] or len(found[1]) > MAX_DIGITS:
        return None
    return int(found[1]) if 1 <= int(found[1]) <= MAX_VERSION else None


def refusal(wanted: bytes, present: bytes | None) -> str:
    """Return why *wanted* must not replace the host's file, and the next step; "" if it may.

    *present* is the content of the host's file, or None if the file does not exist.
    """
    new, old = version_of(wanted), version_of(present or b"")
    if new is None:
        fault = f"the cluster's corosync.conf has {_describe(wanted)}"
    elif old is not None and new < old:
        fault = f"the cluster's corosync.conf has config_version {new}, this host's has {old}"
    else:
        return ""
    return f"{fault}; set config_version to {(old or 0) + 1} or more in the cluster's corosync.conf"


def _describe(content: bytes) -> str:
    """Return what is wrong with the config_version of a corosync.conf that has no valid one."""
    found = _VERSION.search(content)
    if found is None:
        return "no config_version that is a number"
    shown = (found[1] + found[2])[: MAX_DIGITS + 1].decode("ascii", "replace")
    return f"config_version {shown}, but it must be a number from 1 to {MAX_VERSION}"


class Check(Protocol):
    """A test of a file's content, such as ``corosync_check.complaint``."""

    def __call__(self, content: bytes, *, is_cancelled: Callable[[], bool]) -> str:
        """Return why corosync refuses *content*; "" if it does not. Raises Cancelled."""


class _Refused(Exception):
    """Raised if the host's file must not be replaced, with the reason."""


class _File(NamedTuple):
    """The host's file as it is."""

    content: bytes
    mode: int  # permission bits


class _Work(NamedTuple):
    """What the thread has to do."""

    is_new: bool  # whether content was queued
    examine: bool  # whether the host's file is to be examined


class HostConfig(BackgroundThread):
    """A thread that keeps one host file equal to the tree's and has corosync reload it.

    What fails is tried again every *retry* seconds, and is in ``error`` until it succeeds.
    """

    def __init__(
        self,
        path: Path,
        reload: Reload,
        *,
        reload_delay: float = RELOAD_DELAY,
        retry: float = RETRY_INTERVAL,
        check: Check = corosync_check.complaint,
    ) -> None:
        super().__init__("hostconf")
        self._path = path
        self._previous = path.with_name(path.name + PREVIOUS)
        self._reload_delay = reload_delay  # seconds
        self._retry = retry  # seconds
        self._reload = reload
        self._check = check
        self._log_limit = LogLimit(_log)  # every change of the tree's file can fail
        self._changed = threading.Condition()  # guards the eight attributes below
        self._wanted: bytes | None = None
        self._latest: bytes | None = None  # the content that was queued last
        self._queued_at = 0.0  # monotonic second when that was queued first
        self._may_reload = False
        self._is_behind = False  # content was queued and is not written yet, nor has that failed
        self._is_examining = False
        self._examine_asked_at = float("-inf")  # monotonic
        self._fault = ""  # what the last examination has found
        # Used by the thread only.
        self._content: bytes | None = None  # that the host's file is to have
        self._is_reload_asked = False  # for the content, once it is written
        self._examined: tuple[bytes, str, float] | None = None  # content, result, monotonic second
        # Written by the thread only.
        self._write_error = ""  # why the host lacks the tree's file
        self._reload_error = ""  # why corosync was not told of the host's file

    @property
    def error(self) -> str:
        """Why the host or corosync lacks the tree's file, and what to do; empty if both have it."""
        return "; ".join(filter(None, (self._write_error, self._reload_error)))

    @property
    def fault(self) -> str:
        """Why corosync can't start with the host's file, and what to do; empty if it can.

        It is as the last examination has found it.
        """
        return self._fault

    def follow(self, content: bytes, *, reload: bool) -> None:
        """Queue *content* as the new content of the host's file. Never blocks.

        *reload* also asks for a reload by corosync: true at start and for a change that this node
        issued. Of several calls before the thread gets to them, the last content is written, and
        corosync reloads it if any of the calls asked for that.
        """
        with self._changed:
            if content != self._latest:
                self._latest, self._queued_at = content, time.monotonic()
            self._wanted = content
            self._may_reload |= reload
            self._is_behind = True
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Block until what was queued is written or that has failed, *seconds* at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_behind, seconds)

    def examine(self) -> str:
        """Have the thread examine whether corosync can start with the host's file. Never blocks.

        For callers that have no connection to corosync, at each attempt. Returns what the
        examination before has found, "" if none was asked for within *retry* seconds.
        """
        with self._changed:
            now = time.monotonic()
            if now - self._examine_asked_at > self._retry:
                self._fault = ""  # of an earlier loss of the connection
            self._examine_asked_at = now
            self._is_examining = True
            self._changed.notify_all()
            return self._fault

    def wake(self) -> None:
        """Wake the thread to check ``is_stopping``; content that is queued is written first."""
        with self._changed:
            self._changed.notify_all()

    def run(self) -> None:
        """Write one file after the other, and have corosync reload those that it must."""
        lower_priority()  # corosync's tests get it, too
        # Monotonic. A reload that is due from before the start needs no change of the file.
        retry_at = 0.0 if self._reload.is_due else float("inf")
        while (work := self._take(retry_at)) is not None:
            if work.is_new or time.monotonic() >= retry_at:
                try:
                    error = self._install()
                except Cancelled:  # the next start finds the same difference
                    self._end_wait()
                    continue
                self._write_error = self._report(error, self._write_error, again=work.is_new)
                self._end_wait()
                self._reload_error = self._report(self._reload_if_due(), self._reload_error)
                retry_at = time.monotonic() + self._retry if self.error else float("inf")
            if work.examine:
                with contextlib.suppress(Cancelled):
                    fault = self._examine()
                    with self._changed:
                        self._fault = fault

    def _take(self, retry_at: float) -> _Work | None:
        """Block until there is work, or the monotonic second *retry_at*; None after ``close``."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.is_stopping or self._wanted is not None or self._is_examining,
                min(max(0.0, retry_at - time.monotonic()), threading.TIMEOUT_MAX),
            )
            if self.is_stopping and self._wanted is None:
                return None
            work = _Work(self._wanted is not None, self._is_examining)
            if self._wanted is not None:
                self._content = self._wanted
                self._is_reload_asked |= self._may_reload
            self._wanted, self._may_reload, self._is_examining = None, False, False
            return work

    def _end_wait(self) -> None:
        with self._changed:
            self._is_behind = self._wanted is not None
            self._changed.notify_all()

    def _report(self, error: str, before: str, *, again: bool = False) -> str:
        """Log an *error* that is not the one of *before*, or any with *again*; return it."""
        if error and (again or error != before):
            self._log_limit.log(logging.ERROR, error, error)
        return error

    # The host's file.

    def _install(self) -> str:
        """Write the file if it must be; return why that has failed, or "". Raises Cancelled."""
        if self._content is None:
            return ""
        try:
            is_replaced = self._write(self._content)
        except _Refused as refused:
            return f"{self._path} is not replaced: {refused}"
        except OSError as error:
            return f"can't update {self._path}: {error.strerror}"
        # The node that asks for a reload of all nodes waits RELOAD_DELAY for their files.
        is_late = time.monotonic() - self._queued_at > RELOAD_DELAY / 2
        if is_replaced and (self._is_reload_asked or is_late):
            self._reload.require()
        self._is_reload_asked = False
        return ""

    def _write(self, content: bytes) -> bool:
        """Replace the host's file if it differs and may be replaced.

        Return whether an older file was replaced, which corosync has to reload. Raises _Refused
        and Cancelled.
        """
        present = _read(self._path)
        if present is not None and content == present.content:
            return False
        self._raise_refusal(content, present.content if present else None)
        if present:
            self._keep(present)
            if self._is_reload_asked:
                self._reload.announce()
        replace_file(self._path, content, mode=MODE)
        _log.info("wrote %s, config_version %s", self._path, version_of(content))
        return present is not None

    def _raise_refusal(self, content: bytes, present: bytes | None) -> None:
        """Raise _Refused if *content* must not replace the host's file, which has *present*.

        The version of the host's file does not count if corosync refuses that file.
        """
        if refusal(content, None):
            raise _Refused(refusal(content, present))
        if complaint := self._complaint(content):
            raise _Refused(
                f"corosync refuses the cluster's corosync.conf: {complaint}; correct that in the "
                "cluster's corosync.conf, or on this host"
            )
        reason = refusal(content, present)
        if reason and not self._complaint(present or b""):
            raise _Refused(reason)

    def _complaint(self, content: bytes) -> str:
        return self._check(content, is_cancelled=lambda: self.is_stopping)

    def _keep(self, present: _File) -> None:
        """Keep the file that is replaced, unless it is empty or kept already. Raises OSError.

        Until the replacement, and after a crash between the two, both files are the same.
        """
        if present.content.strip() and _read(self._previous) != present:
            replace_file(self._previous, present.content, mode=present.mode)

    # Corosync.

    def _reload_if_due(self) -> str:
        """Have corosync reload a file that was written; return why that has failed, or ""."""
        if not self._reload.is_due:
            return ""
        self._wait_for_other_nodes()
        try:
            self._reload.carry_out()
        except PmxcfsError as error:
            return (
                f"can't ask corosync to reload its configuration: {error}; see why: journalctl -u "
                f"corosync; trying again every {self._retry:.0f} s, or do it by hand: "
                "corosync-cfgtool -R"
            )
        _log.info("asked corosync to reload its configuration")
        return ""

    def _wait_for_other_nodes(self) -> None:
        """Block for the reload delay, so that other nodes write their files, or until ``close``."""
        with self._changed:
            self._changed.wait_for(lambda: self.is_stopping, self._reload_delay)

    def _examine(self) -> str:
        """Return why corosync can't start with the host's file, and what to do; "" if it can."""
        try:
            present = _read(self._path)
        except OSError as error:
            return self._unusable(f"can't be read ({error.strerror})")
        if present is None:
            return self._unusable("is missing")
        if not present.content.strip():
            return self._unusable("is empty")
        complaint = self._complaint_of_host(present.content)
        return self._unusable(f"is refused by it: {complaint}") if complaint else ""

    def _complaint_of_host(self, content: bytes) -> str:
        """Return why corosync refuses the host's file, as it was at most *retry* seconds ago."""
        now = time.monotonic()
        if self._examined is not None:
            examined, complaint, since = self._examined
            if examined == content and now - since < self._retry:
                return complaint
        complaint = self._complaint(content)
        self._examined = content, complaint, now
        return complaint

    def _unusable(self, what: str) -> str:
        good = [] if self._write_error else ["the cluster's corosync.conf"]
        if os.path.lexists(self._previous):
            good.append(str(self._previous))
        return (
            f"corosync can't start, because {self._path} {what}; put a good file there, such as "
            f"{' or '.join(good) or 'a copy from another node'}, then: systemctl restart corosync"
        )


def _read(path: Path) -> _File | None:
    """Return the file; None if there is none. Raises OSError."""
    try:
        with path.open("rb") as file:
            return _File(file.read(), stat.S_IMODE(os.fstat(file.fileno()).st_mode))
    except FileNotFoundError:
        return None
