"""Updates of the host's corosync.conf from the corosync.conf in the tree.

``refusal`` decides whether the host's file may be replaced. ``HostConfig`` writes the file and has
corosync reload it. Both can block, so a separate thread does them, and message delivery goes on.

Contract: docs/spec/operations.md, "corosync.conf".
"""

import logging
import re
import threading
from collections.abc import Callable
from pathlib import Path

from pmxcfs.cluster._corosync import reload_configuration
from pmxcfs.errors import ClusterError
from pmxcfs.host.files import replace_file
from pmxcfs.host.log_limit import LogLimit
from pmxcfs.host.threads import BackgroundThread

RELOAD_DELAY = 1.0  # seconds from writing the file to the reload, so that all nodes have it by then
MODE = 0o644  # permission bits of the host's file

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


class _Refused(Exception):
    """Raised if the host's file must not be replaced, with the reason."""


class HostConfig(BackgroundThread):
    """A thread that keeps one host file equal to the tree's and has corosync reload it."""

    def __init__(
        self,
        path: Path,
        *,
        reload_delay: float = RELOAD_DELAY,
        reload: Callable[[], None] = reload_configuration,
    ) -> None:
        super().__init__("hostconf")
        self._path = path
        self._reload_delay = reload_delay  # seconds
        self._reload = reload
        self._log_limit = LogLimit(_log)  # every change of the tree's file can fail
        self._changed = threading.Condition()  # guards the two attributes below
        self._wanted: bytes | None = None
        self._may_reload = False
        self.error = ""  # why the host or corosync lacks the tree's file; empty if both have it

    def follow(self, content: bytes, *, reload: bool) -> None:
        """Queue *content* as the new content of the host's file. Never blocks.

        *reload* also asks for a reload by corosync: true at start and for a change that this node
        issued. Of several calls before the thread gets to them, the last content is written, and
        corosync reloads it if any of the calls asked for that.
        """
        with self._changed:
            self._wanted = content
            self._may_reload |= reload
            self._changed.notify()

    def wake(self) -> None:
        """Wake the thread to check ``is_stopping``; content that is queued is written first."""
        with self._changed:
            self._changed.notify()

    def run(self) -> None:
        """Write one file after the other, and have corosync reload those that it must."""
        while (taken := self._take()) is not None:
            self.error = self._install(*taken)
            if self.error:
                self._log_limit.log(logging.ERROR, self.error, self.error)

    def _install(self, content: bytes, may_reload: bool) -> str:
        """Write the file, and have corosync reload it; return the reason of a failure, or ""."""
        try:
            if self._write(content) and may_reload:
                self._wait_for_other_nodes()
                self._reload()
                _log.info("asked corosync to reload its configuration")
        except _Refused as refused:
            return f"{self._path} is not replaced: {refused}"
        except OSError as error:
            return f"can't update {self._path}: {error.strerror}"
        except ClusterError as error:
            return f"can't ask corosync to reload its configuration: {error}"
        return ""

    def _take(self) -> tuple[bytes, bool] | None:
        """Block until content is queued; return (content, may_reload), or None after ``close``."""
        with self._changed:
            self._changed.wait_for(lambda: self.is_stopping or self._wanted is not None)
            if self._wanted is None:
                return None
            taken = self._wanted, self._may_reload
            self._wanted, self._may_reload = None, False
            return taken

    def _write(self, content: bytes) -> bool:
        """Replace the host's file if it differs and may be replaced.

        Return whether an older file was replaced, which corosync has to reload. Raises _Refused.
        """
        try:
            present = self._path.read_bytes()
        except FileNotFoundError:
            present = None
        if content == present:
            return False
        if reason := refusal(content, present):
            raise _Refused(reason)
        replace_file(self._path, content, mode=MODE)
        _log.info("wrote %s, config_version %s", self._path, version_of(content))
        return present is not None

    def _wait_for_other_nodes(self) -> None:
        """Block for the reload delay, so that other nodes write their files, or until ``close``."""
        with self._changed:
            self._changed.wait_for(lambda: self.is_stopping, self._reload_delay)
