"""The report of a run: a table, JSON for the comparison of two runs, and a chart."""

import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.chart import chart
from bench.goals import NO_LIMIT, Figures, Goal, Row, Verdict, judge

RESULTS = Path(__file__).parent / "results"
# What each section compares with, in the order of the table.
FLOOR = "the floor: a server that answers with constants; for what the kernel caches, tmpfs"
SECTIONS = {
    "mount": f"nothing pinned: what users have; base: {FLOOR}",
    "mount, one CPU": f"client and server on one CPU; base: {FLOOR}",
    "mount, a load": f"nothing pinned, a load on one CPU; base: {FLOOR}",
    "cpu": "base: the floor; for what is asked, one that never looks for the next request",
    "load": "base: two readers without a writer",
    "cluster": "three nodes; base: as many messages of a bare member; for reads, the floor",
    "growth": "base: 100 files",
    "tree": "base: the plain-Python oracle",
    "sync": "base: hashing every entry; loading every entry",
    "codec": "base: the plain-Python codec",
    "journal": "base: a bare pwrite of as many bytes; encoding the message; the table of the CRC",
    "history": "base: reading all its records",
    "database": "base: bare sqlite3",
    "ipc": "client and server on one CPU; base: a libqb server that answers with zeros",
    "guests": "base: the first request for properties",
    "clients": "base: three users of the mount without local clients",
    "bytes": "base: bare sqlite3, a commit per transaction; one segment",
    "idle": "base: a file that a bare pwrite extends by as many bytes as often",
    "start": "base: the same database without a journal",
}


class Report:
    """The rows of a run. *remark* says under which circumstances they were measured."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.remark = ""

    def add(
        self, section: str, name: str, *, unit: str, ours: float, base: float, goal: Goal
    ) -> None:
        """Add one measurement of which only the medians matter."""
        self.compare(section, name, unit=unit, ours=Figures(ours), base=Figures(base), goal=goal)

    def compare(
        self,
        section: str,
        name: str,
        *,
        unit: str,
        ours: Figures,
        base: Figures,
        goal: Goal,
        before: Figures | None = None,
    ) -> None:
        """Add one measurement; *section* is one of SECTIONS."""
        self.rows.append(Row(section, name, unit, ours, base, goal, before))

    def judged(self) -> list[tuple[Row, Verdict]]:
        """Return the rows in the order of their sections, each with its verdict."""
        order = list(SECTIONS)
        rows = sorted(self.rows, key=lambda row: order.index(row.section))
        return [(row, judge(row)) for row in rows]

    def table(self) -> str:
        """Return the report as text."""
        lines = ["", machine(), self.remark]
        section = ""
        for row, verdict in self.judged():
            if row.section != section:
                section = row.section
                lines += ["", f"{section}: {SECTIONS[section]}", HEADER, RULE]
            lines.append(_line(row, verdict))
        lines += _against(self.rows)
        limited = [verdict for row, verdict in self.judged() if row.goal != Goal()]
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
                "section": row.section,
                "name": row.name,
                "unit": row.unit,
                "ours": row.ours._asdict(),
                "base": row.base._asdict(),
                "before": row.before._asdict() if row.before else None,
                "ratio": row.ratio,
                "limit": None if verdict.limit == NO_LIMIT else verdict.limit,
                "missed": verdict.missed,
            }
            for row, verdict in self.judged()
        ]
        return {"machine": machine(), "remark": self.remark, "rows": rows}


COLUMNS = "{:<46}{:>4}{:>10}{:>10}{:>7}{:>10}{:>10}{:>9}{:>9}{:>10}  {}"
HEADER = COLUMNS.format(
    "", "", "ours", "base", "ratio", "p99", "base's", "CPU", "base's", "limit", ""
).rstrip()
RULE = "-" * len(HEADER)
COMPARED = "{:<46}{:>4}{:>10}{:>10}{:>7}{:>10}{:>10}{:>9}{:>9}{:>10}{:>10}"


def machine() -> str:
    """Return kernel, number of CPUs and Python version."""
    return f"Linux {platform.release()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"


def _line(row: Row, verdict: Verdict) -> str:
    outcome = f"MISSED {verdict.missed}" if verdict.missed else "ok" if row.goal != Goal() else ""
    limit = None if verdict.limit == NO_LIMIT else verdict.limit
    return COLUMNS.format(
        row.name, row.unit, *_numbers(row.ours.median, row.base.median), f"{row.ratio:.2f}",
        *_numbers(row.ours.p99, row.base.p99, row.ours.cpu, row.base.cpu, limit), outcome,
    ).rstrip()  # fmt: skip


def _against(rows: Sequence[Row]) -> list[str]:
    """Return a table of this checkout and the other one, if there is one."""
    compared = [(row, row.before) for row in rows if row.before]
    if not compared:
        return []
    heads = ["ours", "before", "ratio", "p99", "before's", "CPU", "before's", "/ base", "before's"]
    lines = ["", "against the other checkout", COMPARED.format("", "", *heads)]
    section = ""
    for row, before in compared:
        if row.section != section:
            section = row.section
            lines.append(f"{section}:")
        lines.append(
            COMPARED.format(
                row.name, row.unit, *_numbers(row.ours.median, before.median),
                f"{row.ours.median / before.median:.2f}",
                *_numbers(row.ours.p99, before.p99, row.ours.cpu, before.cpu),
                f"{row.ratio:.2f}", f"{before.median / row.base.median:.2f}",
            )
        )  # fmt: skip
    return lines


def _numbers(*values: float | None) -> list[str]:
    return ["" if value is None else f"{value:,.{1 if value < 1000 else 0}f}" for value in values]
