"""Replay of the operations recorded on the original: each must have the same outcome."""

import json
import re
from pathlib import Path

import pytest

from tests.harness import mounted, session_in_use
from tests.mount.recorded import Player, Recorded, load
from tests.places import VECTORS

OWN_SIZE = frozenset({".version", ".members", ".vmlist", ".rrd", ".clusterlog", "local"})
# Paths and modes: the original refuses a chmod to the mode that the object has.
SAME_MODE = frozenset({("d", 0o755), (".version", 0o440)})
NOT_SUPPORTED = ("symlink", "mkfifo")  # libfuse answers ENOSYS
LONGEST_NEW_NAME = 255  # bytes; the original takes 1024

pytestmark = pytest.mark.needs_fuse


def expected(recorded: Recorded) -> tuple[str | None, object]:
    """Return the recorded outcome, with the differences that filesystem.md allows."""
    result = recorded.result
    if recorded.name in NOT_SUPPORTED and session_in_use() != "llfuse":
        return "EPERM", None
    if recorded.name == "longname" and recorded.arguments[0] > LONGEST_NEW_NAME:
        return "ENAMETOOLONG", None
    if recorded.name == "chmod" and tuple(recorded.arguments) in SAME_MODE:
        return None, None
    if recorded.name == "listdir" and isinstance(result, list):
        result = [name for name in result if name not in ("<256>", "<1024>")]
    return recorded.errno, result


def comparable(recorded: Recorded, outcome: tuple[str | None, object]) -> tuple[str | None, object]:
    """Remove the sizes of status files, which may differ from the original's."""
    code, result = outcome
    if recorded.name == "stat" and recorded.arguments[0] in OWN_SIZE:
        return code, re.sub(r"size=\d+", "size=...", str(result))
    return outcome


def differences(player: Player, recording: list[Recorded]) -> list[str]:
    """Play *recording*; return the operations with another outcome."""
    found = []
    for number, recorded in enumerate(recording, start=1):
        wanted = comparable(recorded, expected(recorded))
        outcome = comparable(recorded, player.play(recorded))
        if outcome != wanted:
            found.append(f"{number}: {recorded}: {outcome}, recorded {wanted}")
    return found


def test_local_mode_has_the_recorded_outcomes(tmp_path: Path) -> None:
    recording = load(VECTORS / "fs_local.jsonl")
    with mounted(tmp_path, "--nodename", "node3") as mount:
        assert differences(Player(mount.path, "node3"), recording) == []
    assert len(recording) == 157


def test_a_node_without_quorum_has_the_recorded_outcomes(tmp_path: Path) -> None:
    recording = load(VECTORS / "fs_noquorum.jsonl")
    with mounted(tmp_path, "--test-control") as mount:
        for directory in ("d", "priv", "priv/lock", "priv/lock/a", "nodes", "nodes/node1"):
            (mount.path / directory).mkdir()
        for name, content in (("corosync.conf", "x"), ("f", "hello\n"), ("priv/x", "s\n")):
            (mount.path / name).write_text(content)
        mount.control("quorum", on=False)
        mount.wait_until_notified()
        assert differences(Player(mount.path, "node1"), recording) == []
    assert len(recording) == 34


def test_status_files_are_json_with_the_recorded_keys(tmp_path: Path) -> None:
    recorded = json.loads((VECTORS / "status_files" / "node1.version").read_text())
    with mounted(tmp_path) as mount:
        version = json.loads((mount.path / ".version").read_text())
        assert list(version) == list(recorded)
        assert version["kvstore"] == {"node1": {}}
        assert json.loads((mount.path / ".members").read_text()) == {
            "nodename": "node1",
            "version": 1,
        }
        assert json.loads((mount.path / ".vmlist").read_text()) == {"version": 1}
        (entry,) = json.loads((mount.path / ".clusterlog").read_text())["data"]
        assert (entry["user"], entry["tag"], entry["pri"], entry["node"], entry["msg"]) == (
            "root",
            "cluster",
            6,
            "node1",
            "starting cluster log",
        )
        assert (mount.path / ".rrd").read_text() == ""
