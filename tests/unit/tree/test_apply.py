"""Applying mutations: recorded deliveries of the C implementation, and cases beyond those."""

import errno
import itertools
import json
from typing import Any

import pytest

from pmxcfs._core import Tree
from pmxcfs.errors import Denied, Exists, Invalid, NotEmpty, NotFound, PmxcfsError, Stale, TooBig
from pmxcfs.messages import (
    MAX_FILE_SIZE,
    Create,
    Delete,
    Kind,
    Mkdir,
    Mtime,
    Mutation,
    Rename,
    Unlock,
    Write,
)
from pmxcfs.text import to_bytes, to_text
from pmxcfs.tree import apply as delivery
from pmxcfs.tree.apply import Change, HalfRenamed
from pmxcfs.tree.guests import GuestPath, Guests
from tests.fakes.data.trees import changed_in
from tests.places import VECTORS

DELIVERIES = VECTORS / "delivery.jsonl"


def recorded_sequences() -> dict[int, list[dict[str, Any]]]:
    """Return the steps by the number of their sequence."""
    steps = [json.loads(line) for line in DELIVERIES.read_text().splitlines()]
    groups = itertools.groupby(steps, key=lambda step: step["sequence"])
    return {number: list(group) for number, group in groups}


SEQUENCES = recorded_sequences()


def text_of(recorded: str | dict[str, str]) -> str:
    """Return a recorded name; names that are not UTF-8 are recorded in hex."""
    if isinstance(recorded, dict):
        return to_text(bytes.fromhex(recorded["hex"]))
    return recorded


def mutation_of(step: dict[str, Any]) -> Mutation:
    path = text_of(step["path"])
    match step["op"]:
        case "WRITE":
            data = to_bytes(text_of(step["data"]))
            return Write(path, step["offset"], data, step["flags"] != 0)
        case "MKDIR":
            return Mkdir(path)
        case "DELETE":
            return Delete(path)
        case "RENAME":
            return Rename(path, text_of(step["to"]))
        case "CREATE":
            return Create(path)
        case "MTIME":
            return Mtime(path, step["offset"])
    raise ValueError(step["op"])


class Node:
    """A tree with its guest registry."""

    def __init__(self) -> None:
        self.tree = Tree()
        self.guests = Guests()

    def apply(self, *mutations: Mutation, writer: int = 1, mtime: int = 1000) -> Change:
        """Apply all *mutations* and return the change of the last one."""
        for mutation in mutations:
            change = delivery.apply(self.tree, self.guests, mutation, writer=writer, mtime=mtime)
        return change

    def answer(self, mutation: Mutation, *, writer: int, mtime: int) -> int | str:
        """Return the result in the format of the recordings: a number, or the name of an errno."""
        try:
            self.apply(mutation, writer=writer, mtime=mtime)
        except PmxcfsError as refusal:
            return errno.errorcode[refusal.errno]
        return len(mutation.data) if isinstance(mutation, Write) else 0


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.mark.parametrize("number", SEQUENCES)
def test_a_recorded_sequence_gives_the_same_results(node: Node, number: int) -> None:
    for step in SEQUENCES[number]:
        result = node.answer(mutation_of(step), writer=step["writer"], mtime=step["time"])
        got = (result, node.tree.version, node.tree.checksum().hex())
        assert got == (step["result"], step["version"], step["state_checksum"]), step


def test_the_recordings_are_complete() -> None:
    assert list(SEQUENCES) == list(range(1, 11))
    assert sum(map(len, SEQUENCES.values())) == 1827


def test_a_change_describes_the_mutation(node: Node) -> None:
    made = node.apply(Mkdir("//d/"))
    root = node.tree.root
    assert made == Change(Kind.MKDIR, "d", made.entry, directory=root)
    file = node.apply(Create("d//f")).entry
    assert node.apply(Write("d/f", 0, b"x", truncate=False)) == Change(Kind.WRITE, "d/f", file)
    other = node.apply(Create("g")).entry
    moved = node.apply(Rename("d/f", "/g"))
    assert moved == Change(
        Kind.RENAME, "g", file, "d/f", other, source_directory=made.entry, directory=root
    )
    assert node.apply(Mtime("g", 7)) == Change(Kind.MTIME, "g", file)
    assert node.apply(Rename("g", "h"), mtime=7) == Change(
        Kind.RENAME, "h", file, "g", source_directory=root, directory=root
    )
    again = node.apply(Rename("h", "g"), mtime=8)
    assert again.has_new_time
    assert node.apply(Delete("g")) == Change(Kind.DELETE, "g", file, source_directory=root)
    assert not file.is_attached
    assert not other.is_attached


def test_mtime_stamps_its_own_time_on_entry_and_root(node: Node) -> None:
    entry = node.apply(Create("f"), Mtime("f", 77), writer=3).entry
    assert (entry.mtime, entry.writer, entry.version) == (77, 3, 3)
    assert (node.tree.root.mtime, node.tree.root.writer, node.tree.version) == (77, 3, 3)


def test_half_a_rename_removes_the_target_without_a_new_version(node: Node) -> None:
    node.apply(Mkdir("d"), Create("d/f"), Create("g"))
    target = node.tree.find("g")
    assert target is not None
    with pytest.raises(HalfRenamed) as caught:
        node.apply(Rename("d", "g"))
    assert caught.value.change == Change(Kind.DELETE, "g", target, source_directory=node.tree.root)
    assert node.tree.find("g") is None
    assert node.tree.version == 4
    assert changed_in(node.tree)[target.inode] is None


def test_a_rename_of_a_full_directory_to_a_free_name_changes_nothing(node: Node) -> None:
    node.apply(Mkdir("d"), Create("d/f"))
    before = node.tree.checksum()
    with pytest.raises(NotEmpty) as caught:
        node.apply(Rename("d", "e"))
    assert not isinstance(caught.value, HalfRenamed)
    assert node.tree.checksum() == before


@pytest.mark.parametrize(
    ("source", "target", "refusal"),
    [
        ("d", "d", Invalid),
        ("f", "f", Invalid),
        ("d", "d/e", Invalid),
        ("", "e", Denied),
        ("d", "", Denied),
        ("d", "/", Denied),
    ],
)
def test_a_rename_of_the_root_or_into_itself_is_refused(
    node: Node, source: str, target: str, refusal: type[PmxcfsError]
) -> None:
    node.apply(Mkdir("d"), Create("f"))
    before = node.tree.checksum()
    with pytest.raises(refusal):
        node.apply(Rename(source, target))
    assert node.tree.checksum() == before


def test_a_refusal_leaves_nothing_unsaved(node: Node) -> None:
    node.apply(Mkdir("d"))
    node.tree.mark_written()
    for mutation in (Mkdir("d"), Create("x/y"), Delete("x"), Write("x", 0, b"", truncate=True)):
        with pytest.raises(PmxcfsError):
            node.apply(mutation)
    assert changed_in(node.tree) == {}


def test_the_size_limit_comes_before_everything_else(node: Node) -> None:
    with pytest.raises(TooBig):
        node.apply(Write("missing/f", MAX_FILE_SIZE, b"x", truncate=False))
    node.apply(Create("f"), Write("f", MAX_FILE_SIZE - 1, b"x", truncate=False))
    assert node.tree.content_bytes == MAX_FILE_SIZE


LOCK = (Mkdir("priv"), Mkdir("priv/lock"), Mkdir("priv/lock/a"))


def test_unlock_with_the_right_checksum_removes_the_lock(node: Node) -> None:
    entry = node.apply(*LOCK).entry
    checksum = node.tree.entry_checksum(entry)
    removed = node.apply(Unlock("priv/lock/a", checksum))
    assert removed == Change(
        Kind.UNLOCK, "priv/lock/a", entry, source_directory=node.tree.find("priv/lock")
    )
    assert node.tree.find("priv/lock/a") is None
    assert node.tree.version == 5


def test_unlock_reaches_directories_at_any_depth(node: Node) -> None:
    entry = node.apply(*LOCK, Mkdir("priv/lock/a/b")).entry
    node.apply(Unlock("priv/lock/a/b", node.tree.entry_checksum(entry)))
    assert not entry.is_attached


def test_unlock_is_refused_after_a_renewal(node: Node) -> None:
    entry = node.apply(*LOCK).entry
    checksum = node.tree.entry_checksum(entry)
    node.apply(Mtime("priv/lock/a", 2000))
    with pytest.raises(Stale):
        node.apply(Unlock("priv/lock/a", checksum))
    assert entry.is_attached


@pytest.mark.parametrize(
    ("path", "refusal"),
    [
        ("priv/lock/missing", NotFound),
        ("priv/lock", Denied),
        ("priv", Denied),
        ("", Denied),
        ("priv/lock/file", Denied),
        ("priv/lock/full", NotEmpty),
    ],
)
def test_unlock_removes_only_locks(node: Node, path: str, refusal: type[PmxcfsError]) -> None:
    node.apply(*LOCK, Create("priv/lock/file"), Mkdir("priv/lock/full"), Mkdir("priv/lock/full/a"))
    entry = node.tree.find(path)
    checksum = node.tree.entry_checksum(entry) if entry else bytes(32)
    before = node.tree.checksum()
    with pytest.raises(refusal):
        node.apply(Unlock(path, checksum))
    assert node.tree.checksum() == before


def test_a_lock_is_renewed_by_its_owner_only_and_never_backwards(node: Node) -> None:
    entry = node.apply(*LOCK, writer=2).entry
    with pytest.raises(Denied):
        node.apply(Mtime("priv/lock/a", 1001), writer=1)
    with pytest.raises(Denied):
        node.apply(Mtime("priv/lock/a", 999), writer=2)
    node.apply(Mtime("priv/lock/a", 1000), writer=2)
    assert entry.version == 5


GUEST_DIRECTORIES = (
    Mkdir("nodes"),
    Mkdir("nodes/a"),
    Mkdir("nodes/a/qemu-server"),
    Mkdir("nodes/a/lxc"),
)
VM = "nodes/a/qemu-server/100.conf"


def test_the_registry_follows_creation_move_and_removal(node: Node) -> None:
    node.apply(*GUEST_DIRECTORIES, Create(VM))
    assert list(node.guests) == [GuestPath(100, "a", "qemu")]
    node.apply(Rename(VM, "nodes/a/lxc/100.conf"))
    assert list(node.guests) == [GuestPath(100, "a", "lxc")]
    node.apply(Rename("nodes/a/lxc/100.conf", "nodes/a/lxc/101.conf"))
    assert list(node.guests) == [GuestPath(101, "a", "lxc")]
    node.apply(Rename("nodes/a/lxc/101.conf", "nodes/a/lxc/old"))
    assert list(node.guests) == []
    node.apply(Rename("nodes/a/lxc/old", VM), Delete(VM))
    assert list(node.guests) == []


def test_a_vmid_is_refused_anywhere_else(node: Node) -> None:
    node.apply(*GUEST_DIRECTORIES, Create(VM), Create("tmp"))
    for mutation in (Create("nodes/a/lxc/100.conf"), Rename("tmp", "nodes/a/lxc/100.conf")):
        with pytest.raises(Exists):
            node.apply(mutation)
    node.apply(Rename("tmp", VM))
    assert list(node.guests) == [GuestPath(100, "a", "qemu")]


def test_a_directory_of_a_guest_name_unregisters_when_removed(node: Node) -> None:
    node.apply(*GUEST_DIRECTORIES, Create(VM), Mkdir("nodes/a/lxc/100.conf"))
    node.apply(Delete("nodes/a/lxc/100.conf"))
    assert list(node.guests) == []
    node.apply(Create("nodes/a/lxc/100.conf"))
    with pytest.raises(Exists):
        node.apply(Write(VM, 0, b"", truncate=False))


def test_a_directory_moved_onto_a_guest_name_is_no_guest(node: Node) -> None:
    node.apply(*GUEST_DIRECTORIES, Mkdir("d"), Rename("d", VM))
    assert list(node.guests) == []
