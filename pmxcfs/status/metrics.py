"""Metrics: the latest values of nodes, guests and storages, for ``.rrd`` and the RRD files.

A metric's name is ``TYPE/ID`` or ``TYPE/NODE/STORAGE``. It comes from clients or other nodes and
becomes a file name, so each part is checked here. Callers hold the tree's lock.
Contract: docs/spec/status.md, "RRD".
"""

import logging
import re
from collections.abc import Callable
from typing import NamedTuple

PREFIX = "rrd/"  # prefix of the keys that are metrics
MAX_VALUE = 4095  # bytes, with the NUL at the end
MAX_AGE = 300  # seconds after which a value is no longer shown
MAX_METRICS = 32768  # metrics of the whole cluster, which has one per guest
MAX_REFUSED = 256  # invalid names that are logged

_log = logging.getLogger("pmxcfs.status")

_VERSION = r"[0-9]+(?:\.[0-9]+)*"
_PART = r"(?!\.\.?(?:/|\Z))[A-Za-z0-9._-]+"  # not . or ..
_NAME = re.compile(
    rf"(?:pve2-node|pve-node-{_VERSION}|pve2\.3-vm|pve-vm-{_VERSION})/{_PART}"
    rf"|(?:pve2-storage|pve-storage-{_VERSION})/{_PART}/{_PART}"
)
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


class _Value(NamedTuple):
    received: float  # monotonic seconds
    data: bytes  # without NUL


class Metrics:
    """The latest value of each metric of the cluster."""

    def __init__(self, record: Callable[[str, bytes], None] | None = None) -> None:
        """*record* is called with the name and value (without NUL) of each metric that is set."""
        self._record = record
        self._revision = 0
        self._values: dict[str, _Value] = {}  # in order of receipt, oldest first
        self._refused: set[str] = set()  # invalid names that were logged

    def set(self, name: str, value: bytes, *, now: float) -> bool:
        """Store *value* and pass it to *record*. *now* is monotonic, in seconds.

        Return False if the name or the value is invalid; that is logged once per name.
        """
        data, terminator, _ = value.partition(b"\0")
        if not _NAME.fullmatch(name):
            return self._refuse(name, "no metric has such a name")
        if not terminator or len(value) > MAX_VALUE or value[-1] or _CONTROL.search(data):
            return self._refuse(name, "its value is not one line of text that ends with NUL")
        if name not in self._values and self._is_full(now):
            return self._refuse(name, f"the limit is {MAX_METRICS} metrics")
        self._keep(name, _Value(now, data))
        return True

    def _refuse(self, name: str, reason: str) -> bool:
        """Log *name* only once: newer daemons may send an unknown metric every ten seconds."""
        if name not in self._refused and len(self._refused) < MAX_REFUSED:
            self._refused.add(name)
            _log.warning("metric %s is not stored: %s", name, reason)
        return False

    def _is_full(self, now: float) -> bool:
        self._expire(now)
        return len(self._values) >= MAX_METRICS

    def _keep(self, name: str, value: _Value) -> None:
        self._values.pop(name, None)
        self._values[name] = value
        self._revision += 1
        if self._record is not None:
            self._record(name, value.data)

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
        """Return a number that changes with the result of ``render`` at the same *now*."""
        self._expire(now)
        return self._revision

    def render(self, now: float) -> bytes:
        """Return the content of ``.rrd``: a line ``NAME:VALUE`` per metric that is not too old.

        *now* is monotonic, in seconds.
        """
        self._expire(now)
        return b"".join(
            [
                b"%s:%s\n" % (name.encode("ascii"), value.data)
                for name, value in self._values.items()
            ]
        )
