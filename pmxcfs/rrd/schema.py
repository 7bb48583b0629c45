"""RRD formats: the columns of each kind of metric, and the conversion of a metric to an RRD update.

A metric's text is ``VALUE:VALUE:…``: first columns that are only shown live, then the time, then
the stored columns in order. Older and newer formats have fewer or more columns; all are converted
to the current format. Pure data and arithmetic. Contract: docs/spec/status.md, "RRD".
"""

import re
from typing import NamedTuple

from pmxcfs.errors import Invalid

STEP = 60  # seconds between two values
HEARTBEAT = 120  # seconds without a value after which it is unknown
STEPS_AND_ROWS = (
    (1, 1440),
    (30, 1440),
    (360, 1440),
    (10080, 570),
)  # a day, a month, a year, 10 years
CONSOLIDATIONS = ("AVERAGE", "MAX")
UNKNOWN_PART = 0.5  # share of a row's steps that may be unknown (rrdtool's xff)
UNKNOWN = "U"

_TIME = re.compile(r"[0-9]{1,10}")
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?")
_COUNT = re.compile(r"-?[0-9]+")
_COUNTERS = frozenset(["netin", "netout", "diskread", "diskwrite"])


class Format(NamedTuple):
    """The RRD format of one kind of metric."""

    directory: str  # directory of its files
    live: int  # number of leading columns that are not stored
    columns: tuple[str, ...]


NODE = Format(
    "pve-node-9.0",
    2,
    (
        *("loadavg", "maxcpu", "cpu", "iowait", "memtotal", "memused", "swaptotal", "swapused"),
        *("roottotal", "rootused", "netin", "netout", "memavailable", "arcsize"),
        *("pressurecpusome", "pressureiosome", "pressureiofull"),
        *("pressurememorysome", "pressurememoryfull"),
    ),
)
GUEST = Format(
    "pve-vm-9.0",
    4,
    (
        *("maxcpu", "cpu", "maxmem", "mem", "maxdisk", "disk"),
        *("netin", "netout", "diskread", "diskwrite", "memhost"),
        *("pressurecpusome", "pressurecpufull", "pressureiosome", "pressureiofull"),
        *("pressurememorysome", "pressurememoryfull"),
    ),
)
STORAGE = Format("pve-storage-9.0", 0, ("total", "used"))

# Prefixes of the first part of a metric's name.
_FORMATS = (
    (("pve2-node", "pve-node-"), NODE),
    (("pve2.3-vm", "pve-vm-"), GUEST),
    (("pve2-storage", "pve-storage-"), STORAGE),
)


class Update(NamedTuple):
    """One line of values for one RRD file."""

    file: str  # relative to the directory of all files
    format: Format
    values: str  # TIME:VALUE:…, the argument of rrdtool update


def update_of(name: str, data: bytes) -> Update:
    """Return the update for a metric; ``status.metrics`` has checked its name.

    Missing columns of older formats become unknown, additional ones of newer formats are dropped. A
    value that is not a number becomes unknown. Raises Invalid if the text has no time.
    """
    kind, _, identity = name.partition("/")
    form = next(form for prefixes, form in _FORMATS if kind.startswith(prefixes))
    time, *values = data.decode("ascii", "replace").split(":")[form.live :] or [""]
    if not _TIME.fullmatch(time):
        raise Invalid(f"metric {name} has no time")
    values += [UNKNOWN] * (len(form.columns) - len(values))
    known = [
        _as_counter(value) if column in _COUNTERS else _as_gauge(value)
        for column, value in zip(form.columns, values)  # noqa: B905, newer formats have more
    ]
    return Update(f"{form.directory}/{identity}", form, ":".join([time, *known]))


def _as_gauge(value: str) -> str:
    return value if _NUMBER.fullmatch(value) else UNKNOWN


def _as_counter(value: str) -> str:
    """Cut *value* to an integer: rrdtool refuses a line with a fraction in a counter."""
    whole = value.partition(".")[0] if _NUMBER.fullmatch(value) else UNKNOWN
    return whole if _COUNT.fullmatch(whole) else UNKNOWN


def definitions(form: Format) -> list[str]:
    """Return the columns and archives of a file, in the syntax of rrdcreate(1)."""
    sources = [
        f"DS:{name}:{'DERIVE' if name in _COUNTERS else 'GAUGE'}:{HEARTBEAT}:0:U"
        for name in form.columns
    ]
    archives = [
        f"RRA:{function}:{UNKNOWN_PART}:{steps}:{rows}"
        for function in CONSOLIDATIONS
        for steps, rows in STEPS_AND_ROWS
    ]
    return [*sources, *archives]
