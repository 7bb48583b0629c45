"""The copies kept of replaced changes: their descriptions, and which of them are done."""

from pathlib import Path

import pytest

from pmxcfs.errors import NotFound
from pmxcfs.storage.kept_copies import (
    FORK,
    Description,
    describe_copy,
    find_copy,
    kept_copies,
    mark_done,
    names_to_do,
)

DESCRIPTION = Description(1700000000, FORK, ["priv/a\udcff", "b"], ["c"])


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy with a description, in the state directory."""
    (tmp_path / "conflicts").mkdir()
    path = tmp_path / "conflicts" / "1700000000.db"
    path.write_bytes(b"copy")
    describe_copy(path, DESCRIPTION)
    return path


def test_a_description_is_read_as_it_was_written(tmp_path: Path, copy: Path) -> None:
    (found,) = kept_copies(tmp_path)
    assert (found.path, found.name, found.is_done) == (copy, copy.name, False)
    assert found.description == DESCRIPTION
    assert find_copy(tmp_path, copy.name) == found


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"time": "x"}', b'{"time": 1, "reason": "fork"}', b"\xff"],
)
def test_a_damaged_description_leaves_the_copy(tmp_path: Path, copy: Path, content: bytes) -> None:
    copy.with_name(f"{copy.name}.json").write_bytes(content)
    (found,) = kept_copies(tmp_path)
    assert found.description == Description(1700000000, "", (), ())


def test_a_copy_that_is_done_is_kept_and_no_longer_to_do(tmp_path: Path, copy: Path) -> None:
    second = copy.with_name("1700000000.db.1")
    second.write_bytes(b"second")
    assert names_to_do(tmp_path) == [copy.name, second.name]
    mark_done(find_copy(tmp_path, copy.name))
    assert names_to_do(tmp_path) == [second.name]
    done = find_copy(tmp_path, copy.name)
    assert done.is_done
    assert (done.path.read_bytes(), done.description) == (b"copy", DESCRIPTION)
    mark_done(done)  # once more
    assert find_copy(tmp_path, copy.name) == done


def test_two_copies_of_one_second_are_both_kept(tmp_path: Path, copy: Path) -> None:
    """The clock was set back after the first was marked as done."""
    mark_done(find_copy(tmp_path, copy.name))
    copy.write_bytes(b"later")
    assert find_copy(tmp_path, copy.name).path == copy
    mark_done(find_copy(tmp_path, copy.name))
    assert names_to_do(tmp_path) == []
    assert sorted(each.path.read_bytes() for each in kept_copies(tmp_path)) == [b"copy", b"later"]


@pytest.mark.parametrize("name", ["", "1.db", "../1700000000.db", "1700000000.db.json", "done"])
def test_an_unknown_name_is_refused(tmp_path: Path, copy: Path, name: str) -> None:
    with pytest.raises(NotFound, match="pmxcfs conflicts list"):
        find_copy(tmp_path, name)


def test_no_copies(tmp_path: Path) -> None:
    assert kept_copies(tmp_path) == []
    assert names_to_do(tmp_path) == []
