"""What ``pmxcfs status`` says of a member of a cluster in each state that a test can cause.

Of each state the report has exit status, first line, next step, and the time until it was shown.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.lab import Member
from tests.cluster.together import Cluster

pytestmark = [pytest.mark.needs_corosync, pytest.mark.long]

Report = Callable[[object], None]

SOON = 30.0  # seconds until a state is shown; corosync needs 2 to miss a node
HANG = 20.0  # seconds until a hang is shown without a change: the probe's interval, and 2
WAYS = {"healthy": 0, "degraded": 1, "failed": 2, "unknown": 3}


def ask(node: Member, *flags: str) -> tuple[int, str]:
    """Return exit status and output of ``pmxcfs status``."""
    words = [
        "sh",
        "-c",
        '"$@"; s=$?; echo; echo $s',
        "sh",
        sys.executable,
        "-m",
        "pmxcfs",
        "status",
    ]
    text = node.run(*words, *flags, check=False)
    output, _, status = text.rstrip().rpartition("\n")
    return int(status), output


def findings(node: Member) -> list[str]:
    """Return the names of what is not well; the exit status is that of the state."""
    status, output = ask(node, "--json")
    told: dict[str, Any] = json.loads(output)
    assert status == WAYS[told["state"]], output
    return [finding["name"] for finding in told["findings"]]


def await_finding(
    cluster: Cluster, node: Member, name: str | None, report: Report, *, seconds: float = SOON
) -> None:
    """Wait until the worst finding is *name*, None for a healthy node; report the text."""

    def is_shown() -> bool:
        found = findings(node)
        return (found[0] if found else None) == name

    took = cluster.wait_until(is_shown, seconds, f"the finding {name}", interval=0.3)
    status, output = ask(node)
    shown = [line for line in output.splitlines() if line.startswith(("state", "to do"))]
    report(f"{name or 'well'}: after {took:.1f} s, exit status {status}: {' | '.join(shown)}")


def test_each_state_of_a_member(cluster: Cluster, report: Report) -> None:
    node, other = cluster[3], cluster[2]
    await_finding(cluster, node, None, report)
    other.daemon.stop()
    await_finding(cluster, node, "offline", report)
    cluster.mend()
    await_finding(cluster, node, None, report)
    cluster.cut_off(node)
    await_finding(cluster, node, "no-quorum", report)
    cluster.mend()
    node.corosync.kill()
    await_finding(cluster, node, "no-corosync", report)
    cluster.mend()
    await_finding(cluster, node, None, report)


def test_a_hang_is_seen_without_a_change(cluster: Cluster, report: Report) -> None:
    node = cluster[3]
    await_finding(cluster, node, None, report)
    node.corosync.freeze()
    start = time.monotonic()
    try:
        await_finding(cluster, node, "no-echo", report, seconds=HANG)
        assert time.monotonic() - start <= HANG
    finally:
        node.corosync.thaw()
    cluster.mend()
    await_finding(cluster, node, None, report)


def test_a_kept_copy_is_shown_until_somebody_has_dealt_with_it(
    cluster: Cluster, report: Report
) -> None:
    node = cluster[3]
    home = node.database.parent / "conflicts"
    home.mkdir(exist_ok=True)
    copy = home / "1700000000.db"
    copy.write_bytes(b"")
    try:
        await_finding(cluster, node, "conflict", report)
        assert "1700000000.db" in ask(node)[1]
    finally:
        copy.unlink()
    await_finding(cluster, node, None, report)
