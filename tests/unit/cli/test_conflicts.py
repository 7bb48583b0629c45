"""The command ``pmxcfs conflicts``."""

import json
from pathlib import Path

import pytest

from pmxcfs._cpg import encode as encode_message
from pmxcfs.cli.main import main
from pmxcfs.cli.offline import import_
from pmxcfs.host.callers import UNSET
from pmxcfs.messages import Group, Mkdir, Normal, Write
from pmxcfs.storage._journal import frame
from pmxcfs.storage.kept_copies import FORK, Description, describe_copy
from pmxcfs.storage.records import Change, encode
from pmxcfs.storage.segments import Header, encode_header

NAME = "1700000000.db"
KEPT = {"f": b"ours", "g": b"same", "priv": None}  # None: a directory
NOW = {"f": b"theirs", "g": b"same", "back": b"again"}
Output = pytest.CaptureFixture[str]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A state directory with a database and a copy without a description."""
    home = tmp_path / "state"
    (home / "conflicts").mkdir(parents=True)
    for name, entries in (("config.db", NOW), (f"conflicts/{NAME}", KEPT)):
        source = tmp_path / "sources" / name
        source.mkdir(parents=True)
        for path, content in entries.items():
            if content is None:
                (source / path).mkdir()
            else:
                (source / path).write_bytes(content)
        import_(source, home / name)
    return home


def run(home: Path, *words: str) -> int:
    return main(["conflicts", *words, "--statedir", str(home)])


def describe(home: Path) -> None:
    described = Description(1700000000, FORK, ["f", "priv"], ["back"])
    describe_copy(home / "conflicts" / NAME, described)


def test_list_until_done(home: Path, capsys: Output) -> None:
    describe(home)
    assert run(home, "list") == 0
    line = capsys.readouterr().out
    assert line.startswith(f"{NAME}  2023-11-1")
    assert line.endswith("  3 paths\n")
    assert run(home, "done", NAME) == 0
    assert run(home, "list") == 0
    assert capsys.readouterr().out == "no copies to deal with\n"
    assert run(home, "list", "--all") == 0
    assert capsys.readouterr().out.endswith("  3 paths, done\n")
    assert run(home, "show", NAME) == 0  # also of one that is done
    assert ", done\n" in capsys.readouterr().out


def test_show_tells_each_path_as_it_was_and_as_it_is(home: Path, capsys: Output) -> None:
    describe(home)
    assert run(home, "show", NAME) == 0
    first, reason, *rows, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{home}/conflicts/{NAME}, of 2023-11-1")
    assert reason.startswith("only this node had these changes")
    assert [row.split(" of ")[0].strip() for row in rows] == [
        "back: kept: not there; now: 5 bytes",
        "f: kept: 4 bytes",
        "priv: kept: a directory",
    ]
    assert "now: 6 bytes of" in rows[1]
    assert rows[2].endswith("now: not there")
    assert last == f"for the content: pmxcfs conflicts export {NAME} DIR"


def test_show_without_a_description_tells_all_that_differs(home: Path, capsys: Output) -> None:
    assert run(home, "show", NAME, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["path"] for row in told["entries"]] == ["back", "f", "priv"]
    assert (told["name"], told["done"], told["reason"]) == (NAME, False, "")


def test_export_writes_the_files(home: Path, tmp_path: Path) -> None:
    assert run(home, "export", NAME, str(tmp_path / "out")) == 0
    assert (tmp_path / "out" / "f").read_bytes() == b"ours"


def test_errors_name_the_thing_and_the_next_step(home: Path, capsys: Output) -> None:
    assert run(home, "show", "1.db") == 1
    assert "no copy 1.db" in capsys.readouterr().err
    (home / "config.db").unlink()
    assert run(home, "show", NAME) == 1
    assert "config.db is not there: name the state directory" in capsys.readouterr().err


def test_list_as_json(home: Path, capsys: Output) -> None:
    describe(home)
    assert run(home, "list", "--json") == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told == {
        "name": NAME,
        "path": str(home / "conflicts" / NAME),
        "time": 1700000000,
        "reason": "fork",
        "replaced": ["f", "priv"],
        "removed": ["back"],
        "done": False,
    }


def test_private_content_that_the_history_had_left_out_is_not_taken_for_empty(
    home: Path, tmp_path: Path, capsys: Output
) -> None:
    """Whoever copied an export back would replace a key with nothing."""
    bodies = []
    for version, mutation, left_out in (
        (1, Mkdir("priv"), 0),
        (2, Write("priv/key", 0, b"", truncate=True), 11),
        (3, Write("priv/other", 0, b"kept", truncate=True), 0),
    ):
        message = encode_message(Normal(1700000000, 0, mutation), group=Group.TREE)
        time_ns = 1700000000 * 10**9
        change = Change(version, 1, 1700000000, time_ns, version, 0, 0, UNSET, b"", message)
        bodies.append(encode(change._replace(left_out=left_out)))
    copy = home / "conflicts" / "1700000001.journal"
    copy.write_bytes(encode_header(Header(b"l" * 16, 1, 0)) + frame(bodies, 1))
    assert run(home, "show", copy.name) == 0
    shown = capsys.readouterr().out
    assert "priv/key: kept: its content, which was private, is in no copy; now: not" in shown
    assert "  priv/other: kept: 4 bytes of " in shown
    assert run(home, "export", copy.name, str(tmp_path / "out")) == 1
    assert "priv/key is not written: its content" in capsys.readouterr().err
    assert not (tmp_path / "out/priv/key").exists()
    assert (tmp_path / "out/priv/other").read_bytes() == b"kept"
