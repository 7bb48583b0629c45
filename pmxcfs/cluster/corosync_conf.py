"""The host's corosync.conf, which follows the tree's.

``refusal`` decides, ``HostConfig`` does it on a thread of its own: neither the device nor a
corosync that hangs delays the delivery of messages. Contract: docs/spec/operations.md, "corosync.conf".
"""

import logging
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

from pmxcfs.cluster._corosync import reload_configuration
from pmxcfs.errors import ClusterError
from pmxcfs.host.files import sync_directory

SETTLE = 1.0  # seconds between a new file and the reload
STOP_TIMEOUT = 0.5  # seconds that the end of the thread is waited for
MODE = 0o644

MAX_DIGITS = 20  # what corosync can hold has no more

_VERSION = re.compile(rb"config_version\s*:\s*(\d+)")
_log = logging.getLogger("pmxcfs.confdb")


def version_of(content: bytes) -> int | None:
    """Return the version that a corosync.conf states, None if it states none."""
    found = _VERSION.search(content)
    return int(found[1]) if found and len(found[1]) <= MAX_DIGITS else None


def refusal(wanted: bytes, present: bytes | None) -> str:
    """Say why *wanted* must not replace the host's file; empty if it may.

    *present* is what the file has, None if there is none.
    """
    new, old = version_of(wanted), version_of(present or b"")
    if new is None:
        return "the cluster's corosync.conf has no config_version"
    if old is not None and new < old:
        return f"the cluster's corosync.conf has config_version {new}, this host's has {old}"
    return ""


def replace(path: Path, content: bytes) -> None:
    """Replace a file, so that after a crash it is either the old or the new one. Raises OSError."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)  # of a crash
    with fresh.open("xb") as file:
        os.fchmod(file.fileno(), MODE)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
    sync_directory(path.parent)


class HostConfig:
    """The thread that writes one host file."""

    def __init__(
        self,
        path: Path,
        *,
        settle: float = SETTLE,
        reload: Callable[[], None] = reload_configuration,
    ) -> None:
        self._path = path
        self._settle = settle
        self._reload = reload
        self._changed = threading.Condition()  # guards the next three
        self._wanted: bytes | None = None
        self._may_reload = False
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="hostconf", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def follow(self, content: bytes, *, reload: bool) -> None:
        """Have the host's file follow. *reload*: the change came from this node, or we start.

        Never blocks. Of several at once the last one counts, and a reload that any of them asked
        for.
        """
        with self._changed:
            self._wanted = content
            self._may_reload |= reload
            self._changed.notify()

    def close(self) -> None:
        """End the thread, when what it was given is written; that is waited for half a second."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(STOP_TIMEOUT)

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            content, may_reload = taken
            try:
                if self._write(content) and may_reload:
                    self._settle_down()
                    self._reload()
                    _log.info("asked corosync to reload its configuration")
            except OSError as error:
                _log.error("can't update %s: %s", self._path, error.strerror)
            except ClusterError as error:
                _log.error("corosync was not told to reload its configuration: %s", error)

    def _take(self) -> tuple[bytes, bool] | None:
        """Wait for work; None: the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closing or self._wanted is not None)
            if self._wanted is None:
                return None
            taken = self._wanted, self._may_reload
            self._wanted, self._may_reload = None, False
            return taken

    def _write(self, content: bytes) -> bool:
        """Replace the host's file if it must be; tell whether corosync ran with one before."""
        try:
            present = self._path.read_bytes()
        except FileNotFoundError:
            present = None
        if content == present:
            return False
        if reason := refusal(content, present):
            _log.error("%s is not replaced: %s", self._path, reason)
            return False
        replace(self._path, content)
        _log.info("wrote %s, config_version %s", self._path, version_of(content))
        return present is not None

    def _settle_down(self) -> None:
        """Give all nodes time to write their files, but no longer than the daemon runs."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closing, self._settle)
