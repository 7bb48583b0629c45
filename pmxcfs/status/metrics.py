"""Metrics: the latest values of nodes, guests and storages, for ``.rrd`` and the databases.

A metric's name is ``TYPE/ID`` or ``TYPE/NODE/STORAGE`` and becomes the name of a file, and peers
send them: each part is checked here. Used with the tree's lock held. Contract: docs/spec/status.md,
"RRD".
"""

import logging
import re
from collections.abc import Callable
from typing import NamedTuple

PREFIX = "rrd/"  # of the keys that are metrics
MAX_VALUE = 4095  # bytes, with the NUL
MAX_AGE = 300  # seconds that a value is shown
MAX_METRICS = 32768  # of the whole cluster, which has one for each guest
MAX_REFUSED = 256  # names that are not kept and get a line in the log

_log = logging.getLogger("pmxcfs.status")

_VERSION = r"[0-9]+(?:\.[0-9]+)*"
_PART = r"(?!\.\.?(?:/|\Z))[A-Za-z0-9._-]+"  # neither . nor ..
_NAME = re.compile(
    rf"(?:pve2-node|pve-node-{_VERSION}|pve2\.3-vm|pve-vm-{_VERSION})/{_PART}"
    rf"|(?:pve2-storage|pve-storage-{_VERSION})/{_PART}/{_PART}"
)
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


class _Value(NamedTuple):
    received: float
    data: bytes  # without NUL


class Metrics:
    """The latest value of each metric of the cluster."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[str, bytes], None]] = []  # get name and value, without NUL
        self._revision = 0
        self._values: dict[str, _Value] = {}  # those received first come first
        self._refused: set[str] = set()  # names that were logged

    def set(self, name: str, value: bytes, *, now: float) -> bool:
        """Keep *value* and pass it on; what is no metric is logged once, and False returned.

        *now* is monotonic, in seconds.
        """
        data, terminator, _ = value.partition(b"\0")
        if not _NAME.fullmatch(name):
            return self._refuse(name, "no such metric is known")
        if not terminator or len(value) > MAX_VALUE or value[-1] or _CONTROL.search(data):
            return self._refuse(name, "its value is not a text of one line with NUL")
        if name not in self._values and self._is_full(now):
            return self._refuse(name, f"there are {MAX_METRICS} others")
        self._keep(name, _Value(now, data))
        return True

    def _refuse(self, name: str, reason: str) -> bool:
        """Log it once: daemons of a newer version repeat what we don't know every ten seconds."""
        if name not in self._refused and len(self._refused) < MAX_REFUSED:
            self._refused.add(name)
            _log.warning("metric %s is not kept: %s", name, reason)
        return False

    def _is_full(self, now: float) -> bool:
        self._expire(now)
        return len(self._values) >= MAX_METRICS

    def _keep(self, name: str, value: _Value) -> None:
        self._values.pop(name, None)
        self._values[name] = value
        self._revision += 1
        for listener in self.listeners:
            listener(name, value.data)

    def _expire(self, now: float) -> None:
        old = []
        for name, value in self._values.items():
            if now - value.received <= MAX_AGE:
                break
            old.append(name)
        for name in old:
            del self._values[name]
        self._revision += bool(old)

    def revision(self, now: float) -> int:
        """Return a number that changes whenever what ``render`` returns does."""
        self._expire(now)
        return self._revision

    def render(self, now: float) -> bytes:
        """Return ``.rrd``: a line ``NAME:VALUE`` for each metric that is not too old."""
        self._expire(now)
        return b"".join(
            [
                b"%s:%s\n" % (name.encode("ascii"), value.data)
                for name, value in self._values.items()
            ]
        )
