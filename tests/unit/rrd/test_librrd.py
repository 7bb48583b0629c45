"""The binding of librrd: what it refuses, and what its errors say."""

import contextlib
import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmxcfs.errors import Failed, Invalid
from pmxcfs.rrd._librrd import create, update

START = 1795305600
DEFINITIONS = ["DS:total:GAUGE:120:0:U", "RRA:AVERAGE:0.5:1:1440"]
MAGIC = b"RRD\0"


def made(file: Path) -> str:
    """Create a database; return its name."""
    create(str(file), DEFINITIONS, start=START, step=60)
    return str(file)


def test_a_database_is_created_and_updated(tmp_path: Path) -> None:
    file = Path(made(tmp_path / "x"))
    before = file.read_bytes()
    assert before.startswith(MAGIC)
    update(str(file), f"{START + 60}:5")
    after = file.read_bytes()
    assert len(after) == len(before)
    assert after != before


def test_a_name_is_kept_byte_for_byte(tmp_path: Path) -> None:
    made(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff \xc3\xa4")))
    assert os.listdir(os.fsencode(tmp_path)) == [b"\xff \xc3\xa4"]


def test_an_existing_database_is_replaced(tmp_path: Path) -> None:
    file = made(tmp_path / "x")
    update(file, f"{START + 60}:5")
    made(tmp_path / "x")
    update(file, f"{START + 60}:5")


@pytest.mark.parametrize("file", ["", "x", "-", "ceph//pool/x", "/tmp/%n", "/tmp/x\0y"])
def test_a_name_that_librrd_would_misread_is_refused(file: str) -> None:
    with pytest.raises(Invalid):
        create(file, DEFINITIONS, start=START, step=60)
    with pytest.raises(Invalid):
        update(file, f"{START}:1")


@pytest.mark.parametrize(
    "values", ["", "N:1", "-60:1", "1e9:1", "now@1", "5@1", "5:1@2", "\u0665:1", "5:1\0", ":1"]
)
def test_a_line_without_a_plain_time_is_refused(values: str, tmp_path: Path) -> None:
    file = made(tmp_path / "x")
    before = Path(file).read_bytes()
    with pytest.raises(Invalid, match=r"/x: "):
        update(file, values)
    assert Path(file).read_bytes() == before


@pytest.mark.parametrize(
    ("definitions", "start", "step"),
    [
        ([], START, 60),
        ([*DEFINITIONS, ""], START, 60),
        ([*DEFINITIONS, "RRA:\0"], START, 60),
        (DEFINITIONS * 1000, START, 60),
        (DEFINITIONS, 0, 60),
        (DEFINITIONS, -1, 60),
        (DEFINITIONS, START, 0),
    ],
)
def test_a_bad_definition_is_refused(
    definitions: list[str], start: int, step: int, tmp_path: Path
) -> None:
    with pytest.raises(Invalid, match=r"/x: "):
        create(str(tmp_path / "x"), definitions, start=start, step=step)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("start", "step"), [(1 << 63, 60), (START, -1), (START, 1 << 64)])
def test_a_number_that_does_not_fit_is_refused(start: int, step: int, tmp_path: Path) -> None:
    with pytest.raises(OverflowError):
        create(str(tmp_path / "x"), DEFINITIONS, start=start, step=step)


def refused(file: Path, values: str) -> str:
    """Return the error of an update."""
    with pytest.raises(Failed) as caught:
        update(str(file), values)
    return str(caught.value)


def test_an_error_names_the_file_once_and_the_reason(tmp_path: Path) -> None:
    file = Path(made(tmp_path / "x"))
    (tmp_path / "none").write_bytes(b"no database " * 1000)
    (tmp_path / "short").write_bytes(file.read_bytes()[:-1])
    errors = {
        "absent": refused(tmp_path / "absent", f"{START + 60}:1"),
        "none": refused(tmp_path / "none", f"{START + 60}:1"),
        "short": refused(tmp_path / "short", f"{START + 60}:1"),
        "x": refused(file, f"{START}:1"),
    }
    reasons = {
        "absent": "No such file or directory",
        "none": "is not an RRD file",
        "short": "is too small",
        "x": "illegal attempt to update using time",
    }
    for name, error in errors.items():
        assert reasons[name] in error
        assert error.count(str(tmp_path / name)) == 1


def test_an_error_of_a_definition_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(Failed, match=f"{tmp_path}/x: .*must define at least one Data Source"):
        create(str(tmp_path / "x"), ["RRA:AVERAGE:0.5:1:10"], start=START, step=60)


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """Let every write behind the first 4096 bytes of a file fail, also that of pytest's output."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_database_that_can_not_be_written_is_not_created(tmp_path: Path) -> None:
    """librrd gives no text for this failure."""
    with small_files(), pytest.raises(Failed, match=f"^{tmp_path}/x: not written; is there room"):
        made(tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_an_error_does_not_stay_for_the_next_call(tmp_path: Path) -> None:
    file = made(tmp_path / "x")
    refused(tmp_path / "absent", f"{START + 60}:1")
    update(file, f"{START + 60}:1")


def test_each_thread_gets_the_error_of_its_own_call(tmp_path: Path) -> None:
    wrong: list[str] = []
    together = threading.Barrier(4)

    def ask(name: str) -> None:
        together.wait(20)
        for number in range(200):
            file = tmp_path / f"{name}{number}"
            made(file)
            if f"{tmp_path}/{name}" not in refused(file, f"{START}:1"):
                wrong.append(name)

    threads = [threading.Thread(target=ask, args=[name]) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(tmp_path.iterdir())) == 800
    assert wrong == []
