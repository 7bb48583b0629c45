"""The records of one path: all of them and no others, whatever the files hold."""

import os
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmxcfs.messages import Create, Delete, Mkdir, Mtime, Mutation, Rename, Unlock, Write
from pmxcfs.storage import path_search
from pmxcfs.storage.changes import last_naming
from pmxcfs.storage.history import History
from pmxcfs.storage.path_search import search_path
from pmxcfs.storage.records import (
    Adopted,
    Before,
    Change,
    Check,
    Gap,
    Record,
    Saved,
    encode,
)
from pmxcfs.storage.segments import Header, name_of, read_bodies
from pmxcfs.text import to_bytes
from tests.fakes.data.journals import RECORDS, SAVE_ID, WRITE, before, change, written


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def write(path: str, data: bytes = b"x") -> Mutation:
    return Write(path, 0, data, truncate=True)


def keep(home: Path, *groups: list[Record], live: int = 1) -> None:
    """Write a journal whose segments are history but for the last *live* ones."""
    written(home, *groups)
    history, first = History(home, private_now=lambda inodes: ()), 1
    for group in groups[: len(groups) - live]:
        history.take(first, before=first + len(group))
        first += len(group)


def found(home: Path, path: bytes) -> list[Record]:
    return [each.record for each in search_path(home, path)]


def numbers(home: Path, path: bytes) -> list[int]:
    return [each.sequence for each in search_path(home, path)]


def changes(*mutations: Mutation) -> list[Record]:
    return [change(number, mutation) for number, mutation in enumerate(mutations)]


def test_the_records_of_a_file_come_newest_first_from_history_and_journal(home: Path) -> None:
    keep(
        home,
        [before("d/a", b"old"), *changes(write("d/a"), write("d/b"))],
        [*changes(write("d/b"), write("d/ab"))],
        [*changes(Mtime("d/a", 5), write("d"), Delete("d/a"))],
    )
    assert numbers(home, b"d/a") == [8, 6, 2, 1]
    assert numbers(home, b"d/b") == [4, 3]
    assert numbers(home, b"d") == [8, 7, 6, 5, 4, 3, 2, 1]
    assert numbers(home, b"") == [8, 7, 6, 5, 4, 3, 2, 1]
    assert numbers(home, b"/d//ab/") == [5]
    assert numbers(home, b"other") == []


def test_a_replacement_is_followed_into_its_temporary_file(home: Path) -> None:
    other = changes(Create("a.tmp.1"), write("a.tmp.1"), Rename("a.tmp.1", "other"))
    ours = changes(Create("a.tmp.1"), write("a.tmp.1"), Rename("a.tmp.1", "a"))
    keep(home, [*changes(write("a"))], other, ours, [*changes(write("b"))])
    assert numbers(home, b"a") == [7, 6, 5, 1]
    assert numbers(home, b"other") == [4, 3, 2]


def test_renames_of_directories_above_are_followed(home: Path) -> None:
    keep(
        home,
        changes(Mkdir("old"), Mkdir("old/dir"), write("old/dir/a"), write("new/dir/a")),
        changes(Mtime("old", 7), Rename("old", "new"), Mtime("new", 7), write("new/dir/b")),
        changes(write("new/dir/a")),
    )
    assert numbers(home, b"new/dir/a") == [9, 6, 4, 3]
    assert numbers(home, b"new/dir/b") == [8, 6]


def test_what_may_tell_of_any_path_is_told(home: Path) -> None:
    short = Adopted(8, 20, (), is_short=True)
    keep(home, [Gap(1), WRITE], [short], [Adopted(8, 20, (b"a/b",)), Saved(SAVE_ID)], [WRITE])
    assert numbers(home, b"a/b") == [4, 3, 1]
    assert numbers(home, b"c") == [3, 1]


def test_what_is_not_a_change_of_another_path_is_not_told(home: Path) -> None:
    unlock, unknown = change(8, Unlock("priv/lock/a", bytes(32))), WRITE._replace(message=b"?")
    keep(home, [unlock, unknown, Check(8, bytes(32))], [WRITE], live=2)
    assert found(home, b"priv/lock/a") == [unlock]
    assert found(home, b"priv/lock/b") == []


def test_a_segment_without_the_path_is_not_read(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(home, *[changes(write(f"d/{number}")) for number in range(20)])
    read: list[Path] = []

    def noted(path: Path) -> tuple[Header | None, bytes, list[tuple[int, int]]]:
        read.append(path)
        return read_bodies(path)

    monkeypatch.setattr(path_search, "read_bodies", noted)
    assert numbers(home, b"d/7") == [8]
    assert [path.name for path in read] == [name_of(20), name_of(8)]


def test_a_random_history_is_searched_as_a_list_would_be() -> None:
    """The model takes the records one by one, without an index."""
    generator = random.Random(9)
    places = ["a", "b", "d/a", "d/b", "e/a", "d", "e"]
    for _ in range(50):
        mutations = [random_mutation(generator, places) for _ in range(12)]
        records = changes(*mutations)
        wanted = generator.choice(places)
        with_history = generator.randrange(4)
        expected = model(mutations, wanted)
        assert searched(records, wanted, parts=4, live=with_history) == expected


def random_mutation(generator: random.Random, places: list[str]) -> Mutation:
    path, to = generator.choice(places), generator.choice(places)
    kinds = [Create(path), write(path), Rename(path, to), Delete(path), Mtime(path, 1)]
    return generator.choice(kinds)


def model(mutations: list[Mutation], wanted: str) -> list[int]:
    names, told = {wanted}, []
    for number in range(len(mutations), 0, -1):
        mutation = mutations[number - 1]
        paths = mutation[:2] if isinstance(mutation, Rename) else mutation[:1]
        is_told = any(f"{path}/".startswith(f"{name}/") for path in paths for name in names)
        if isinstance(mutation, Rename):
            is_told |= any(name.startswith(f"{path}/") for path in paths for name in names)
            for name in [*names]:
                if f"{name}/".startswith(f"{mutation.to}/"):
                    names.add(mutation.path + name[len(mutation.to) :])
        elif isinstance(mutation, Create):
            names = {wanted} | (names - {mutation.path})
        if is_told:
            told.append(number)
    return told


def searched(records: list[Record], wanted: str, *, parts: int, live: int) -> list[int]:
    size = len(records) // parts
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory, "journal")
        keep(home, *[records[at : at + size] for at in range(0, len(records), size)], live=live)
        return numbers(home, to_bytes(wanted))


def is_named(body: bytes, *names: bytes, below: tuple[bytes, ...] = ()) -> bool:
    return last_naming(body, [(0, len(body))], 1, frozenset(names), below) == 0


@given(RECORDS)
def test_a_record_may_name_its_paths(record: Record) -> None:
    body = encode(record)
    if isinstance(record, Before):
        assert is_named(body, record.path)
        assert is_named(body, below=(record.path[:1],))
        assert not is_named(body, record.path + b"x")
    elif not isinstance(record, Change):
        assert is_named(body, b"x") == isinstance(record, Adopted | Gap)


@given(st.binary(max_size=80))
def test_any_bytes_name_something_or_nothing(body: bytes) -> None:
    if body:
        assert is_named(body) <= is_named(body, b"", below=(b"",))


@pytest.mark.parametrize("record", [WRITE, before("a", b"")], ids=["change", "row"])
def test_a_record_that_is_cut_names_nothing(record: Record) -> None:
    body = encode(record)
    assert not any(is_named(body[:size], below=(b"",)) for size in range(1, 40))


@pytest.mark.parametrize("bounds", [(-1, 1), (0, 3), (2, 2), (1, 0)])
def test_bounds_outside_of_the_content_are_refused(bounds: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="outside"):
        last_naming(b"ab", [bounds], 1, frozenset(), ())


def test_both_paths_of_a_rename_are_named() -> None:
    for path, to in [("a", "b"), ("a/b", "a/c"), ("a", "a.b"), ("a.b", "a"), ("a/b", "a/b")]:
        body = encode(change(8, Rename(path, to)))
        assert is_named(body, path.encode())
        assert is_named(body, to.encode())
        assert is_named(body, below=(to.encode(),))
        assert not is_named(body, b"other", below=(b"c",))


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.long)])
def test_mutated_files_give_records_or_nothing(home: Path, count: int) -> None:
    """Each byte of a history may be any; what is told was written."""
    keep(
        home,
        [before("d/a", b"old"), *changes(write("d/a"), Rename("d/a", "d/b"))],
        changes(write("d/b"), write("d/c")),
        [Gap(3), *changes(write("d/b"))],
    )
    whole = {path: path.read_bytes() for path in home.iterdir()}
    written_records = found(home, b"")
    generator = random.Random(8)
    for _ in range(count):
        path = generator.choice([*whole])
        content = bytearray(whole[path])
        for _ in range(generator.randint(1, 3)):
            content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        if generator.random() < 0.2:
            del content[generator.randrange(len(content)) :]
        path.write_bytes(content)
        assert all(record in written_records for record in found(home, b"d/b"))
        path.write_bytes(whole[path])
    os.rename(home / name_of(1), home / name_of(77))
    assert len(found(home, b"d/b")) == 3
