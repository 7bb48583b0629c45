"""History of a real daemon: what private files held is nowhere in it, all else is."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pmxcfs.messages import Rename, Write
from pmxcfs.storage.records import Before, Change, mutation_of
from pmxcfs.storage.segments import Place, Segment, scan
from tests.harness import PROGRAM, Daemon, ipc_name, mounted, wait_for

pytestmark = pytest.mark.needs_fuse

SECRET = b"-----BEGIN PRIVATE KEY-----"
LARGE = 1 << 20  # bytes; four files of this size fill a segment


def replace(path: Path, content: bytes) -> None:
    """Replace a file as the programs of Proxmox VE do."""
    temporary = path.with_name(f"{path.name}.tmp.1")
    temporary.write_bytes(content)
    temporary.rename(path)


def journal_of(daemon: Daemon) -> tuple[Place, ...]:
    return scan(daemon.state / "journal").segments


def history_of(daemon: Daemon) -> list[Segment]:
    """Return the segments of the history."""
    return [
        place.read() for place in journal_of(daemon) if place.header and place.header.is_history
    ]


def fill_segment(daemon: Daemon, byte: bytes) -> None:
    for number in range(5):
        replace(daemon.path / f"large{number}", os.urandom(LARGE - 1) + byte)


def has_nothing_sealed(daemon: Daemon) -> bool:
    """Tell whether of several segments the journal has the one only that is being written."""
    segments = journal_of(daemon)
    return len(segments) == 1 and segments[0].first > 1


def report(workdir: Path) -> dict[str, Any]:
    command = [sys.executable, *PROGRAM, "status", "--json", "--ipc-name", ipc_name(workdir)]
    done = subprocess.run(command, capture_output=True, check=True, cwd=workdir)
    found: dict[str, Any] = json.loads(done.stdout)["history"]
    return found


def test_without_a_size_there_is_no_history(tmp_path: Path) -> None:
    with mounted(tmp_path, "--history-size", "0") as daemon:
        for byte in (b"1", b"2"):
            fill_segment(daemon, byte)
        wait_for(lambda: has_nothing_sealed(daemon), daemon)
        assert report(tmp_path) == {"bytes": 0, "since": None}


def test_a_size_of_the_history_is_its_most(tmp_path: Path) -> None:
    begin = int(time.time())
    with mounted(tmp_path, "--history-size", "6M", "--history-private") as daemon:
        (daemon.path / "priv").mkdir(exist_ok=True)
        for _ in range(15):
            replace(daemon.path / "priv" / "shadow.cfg", SECRET)
            replace(daemon.path / "large", os.urandom(LARGE))
        wait_for(lambda: len(journal_of(daemon)) == 2, daemon)
        (history,) = history_of(daemon)
        told = report(tmp_path)
        assert told["bytes"] == history.path.stat().st_size < 6 << 20
        assert begin <= told["since"] <= time.time()
        assert SECRET in history.content


def test_the_history_of_a_daemon_has_no_private_content(tmp_path: Path) -> None:
    with mounted(tmp_path) as daemon:
        root = daemon.path
        for directory in ("priv", "nodes", "nodes/node1", "nodes/node1/priv"):
            (root / directory).mkdir(exist_ok=True)
        replace(root / "priv" / "shadow.cfg", SECRET + b"1")
        replace(root / "priv" / "shadow.cfg", SECRET + b"2")
        replace(root / "nodes" / "node1" / "priv" / "key", SECRET + b"3")
        (root / "draft").write_bytes(SECRET + b"4")
        (root / "draft").rename(root / "priv" / "draft")
        (root / "later").write_bytes(SECRET + b"5")
        replace(root / "datacenter.cfg", b"keyboard: de\n")
        fill_segment(daemon, b"1")
        (root / "later").rename(root / "priv" / "later")
        (root / "priv" / "shadow.cfg").unlink()
        fill_segment(daemon, b"2")
        replace(root / "datacenter.cfg", b"keyboard: fr\n")  # it is saved 2 s later
        wait_for(lambda: len(history_of(daemon)) >= 2, daemon)
        history = history_of(daemon)
    records = [located.record for segment in history for located in segment.records]
    assert not [segment.path for segment in history if SECRET in segment.content]
    changes = [record for record in records if isinstance(record, Change)]
    mutations = [mutation_of(change) for change in changes]
    written = [m for m in mutations if isinstance(m, Write)]
    assert any(m.data == b"keyboard: de\n" for m in written)
    left_out = {mutation_of(c).path for c in changes if c.left_out == len(SECRET) + 1}
    assert {"draft", "later", "priv/shadow.cfg.tmp.1", "nodes/node1/priv/key.tmp.1"} <= left_out
    assert Rename("later", "priv/later") in mutations
    rows = [record for record in records if isinstance(record, Before)]
    assert any(row.path == b"priv/shadow.cfg" and row.is_left_out for row in rows)
    versions = [change.version for change in changes]
    assert versions == list(range(versions[0], versions[0] + len(versions)))
