"""The report of a run: a table, JSON for the comparison of two runs, and a chart."""

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from bench.chart import chart
from bench.goals import Goal, Row, Verdict, judge, pace

RESULTS = Path(__file__).parent / "results"
# What "base" means in each section, in the order of the table.
SECTIONS = {
    "mount": "the floor: a FUSE server that answers with constants",
    "load": "two readers without a writer",
    "cluster": "the same node alone",
    "growth": "100 files",
    "tree": "the plain-Python oracle",
    "sync": "hashing every entry; loading every entry",
    "codec": "the plain-Python codec",
    "journal": "a bare pwrite of as many bytes; encoding the message; the table of the CRC",
    "database": "bare sqlite3",
    "ipc": "a libqb server that answers with zeros",
    "guests": "the first request for properties",
    "clients": "three users of the mount without local clients",
    "bytes": "bare sqlite3, a commit per transaction; one segment",
    "idle": "a file that a bare pwrite extends by as many bytes as often",
    "start": "the same database without a journal",
}
NO_LIMIT = float("inf")


class Report:
    """The rows of a run."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(
        self,
        section: str,
        name: str,
        *,
        unit: str,
        ours: float,
        base: float,
        goal: Goal,
        commit_us: float = 0.0,
    ) -> None:
        """Add one measurement; *section* is one of SECTIONS."""
        self.rows.append(Row(section, name, unit, ours, base, goal, commit_us))

    def judged(self) -> list[tuple[Row, Verdict]]:
        """Return the rows in the order of their sections, each with its verdict."""
        order, speed = list(SECTIONS), pace(self.rows)
        rows = sorted(self.rows, key=lambda row: order.index(row.section))
        return [(row, judge(row, speed)) for row in rows]

    def table(self) -> str:
        """Return the report as text."""
        lines = ["", f"{machine()}, pace {pace(self.rows):.2f}"]
        section = ""
        for row, verdict in self.judged():
            if row.section != section:
                section = row.section
                lines += ["", HEADER.format(f"{section}; base: {SECTIONS[section]}"), RULE]
            lines.append(_line(row, verdict))
        limited = [verdict for _, verdict in self.judged() if verdict.limit != NO_LIMIT]
        met = sum(not verdict.missed for verdict in limited)
        return "\n".join([*lines, "", f"{met} of {len(limited)} rows keep their limits"])

    def save(self, directory: Path) -> list[Path]:
        """Write the JSON and the chart, named after the current time; return their paths."""
        directory.mkdir(exist_ok=True)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        document, picture = directory / f"{stamp}.json", directory / f"{stamp}.svg"
        document.write_text(json.dumps(self._as_json(), indent=1, ensure_ascii=False) + "\n")
        picture.write_text(chart(self.judged(), title=machine()))
        return [document, picture]

    def _as_json(self) -> dict[str, Any]:
        rows = [
            {
                **row._asdict(),
                "goal": row.goal._asdict(),
                "ratio": row.ratio,
                "limits": {"goal": _finite(verdict.goal), "must": _finite(verdict.must)},
                "missed": verdict.missed,
            }
            for row, verdict in self.judged()
        ]
        return {"machine": machine(), "pace": pace(self.rows), "rows": rows}


HEADER = "{:<58}" + f"{'ours':>11}{'base':>11}{'ratio':>8}{'goal <=':>11}{'must <=':>11}"
RULE = "-" * 122


def machine() -> str:
    """Return kernel, number of CPUs and Python version."""
    return f"Linux {platform.release()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"


def _line(row: Row, verdict: Verdict) -> str:
    figures = f"{_number(row.ours)}{_number(row.base)}{row.ratio:>8.2f}"
    limits = f"{_number(verdict.goal)}{_number(verdict.must)}"
    outcome = f"MISSED: {verdict.missed}" if verdict.missed else "ok"
    if verdict.limit == NO_LIMIT:
        outcome = ""
    return f"{row.name:<50}{row.unit:>8}{figures}{limits}  {outcome}".rstrip()


def _number(value: float) -> str:
    return f"{'-':>11}" if value == NO_LIMIT else f"{value:>11,.{1 if value < 1000 else 0}f}"


def _finite(limit: float) -> float | None:
    """Return None for infinity, which JSON lacks."""
    return None if limit == NO_LIMIT else limit
