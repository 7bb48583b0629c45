"""The guest registry and the parsing of configuration paths."""

import pytest

from pmxcfs._core import Tree
from pmxcfs.messages import Record
from pmxcfs.tree.guests import GuestPath, Guests, parse_guest_path

VM = GuestPath(100, "a", "qemu")


@pytest.mark.parametrize(
    ("path", "guest"),
    [
        ("nodes/a/qemu-server/100.conf", VM),
        ("nodes/a/lxc/1.conf", GuestPath(1, "a", "lxc")),
        ("nodes/A-9b/openvz/4294967295.conf", GuestPath(4294967295, "A-9b", "openvz")),
        ("/nodes//a/qemu-server/100.conf/", VM),
        ("nodes/0/lxc/9.conf", GuestPath(9, "0", "lxc")),
        ("nodes/a/lxc/4294967296.conf", None),
        ("nodes/a/lxc/" + "9" * 5000 + ".conf", None),
        ("nodes/a/lxc/0100.conf", None),
        ("nodes/a/lxc/0.conf", None),
        ("nodes/a/lxc/.conf", None),
        ("nodes/a/lxc/100", None),
        ("nodes/a/lxc/100.conf.conf", None),
        ("nodes/a/lxc/100.conf.tmp.1", None),
        ("nodes/a/lxc/ 100.conf", None),
        ("nodes/a/lxc/+100.conf", None),
        ("nodes/a/lxc/1_0.conf", None),
        ("nodes/a/lxc/1\N{SUPERSCRIPT TWO}.conf", None),
        ("nodes/a/lxc/\N{ARABIC-INDIC DIGIT ONE}.conf", None),
        ("nodes/a/lxc/100.CONF", None),
        ("nodes/a/priv/100.conf", None),
        ("nodes/a/lxc/d/100.conf", None),
        ("nodes/-a/lxc/100.conf", None),
        ("nodes/a-/lxc/100.conf", None),
        ("nodes/-/lxc/100.conf", None),
        ("nodes/a.b/lxc/100.conf", None),
        ("nodes/\N{LATIN SMALL LETTER A WITH DIAERESIS}/lxc/100.conf", None),
        ("node/a/lxc/100.conf", None),
        ("a/lxc/100.conf", None),
        ("", None),
    ],
)
def test_a_guest_path_is_recognized(path: str, guest: GuestPath | None) -> None:
    assert parse_guest_path(path) == guest


@pytest.fixture
def guests() -> Guests:
    registry = Guests()
    registry.register(VM)
    registry.mark_written()
    return registry


def test_a_vmid_conflicts_only_with_another_place(guests: Guests) -> None:
    assert not guests.conflicts(VM)
    assert not guests.conflicts(GuestPath(101, "a", "qemu"))
    assert guests.conflicts(GuestPath(100, "b", "qemu"))
    assert guests.conflicts(GuestPath(100, "a", "lxc"))


def test_a_vmid_may_move_with_its_own_configuration(guests: Guests) -> None:
    target = GuestPath(100, "b", "qemu")
    assert not guests.conflicts(target, source=VM)
    assert not guests.conflicts(target, source=GuestPath(100, "c", "lxc"))
    assert guests.conflicts(target, source=GuestPath(101, "a", "qemu"))


def test_registering_replaces_and_unregistering_forgets(guests: Guests) -> None:
    moved = GuestPath(100, "b", "lxc")
    guests.register(moved)
    assert guests.get(100) == moved
    assert list(guests) == [moved]
    assert len(guests) == 1
    guests.unregister(100)
    guests.unregister(7)
    assert guests.get(100) is None
    assert len(guests) == 0


def test_a_rollback_restores_the_last_saved_registry(guests: Guests) -> None:
    guests.register(GuestPath(100, "b", "qemu"))
    guests.unregister(100)
    guests.register(GuestPath(7, "b", "qemu"))
    guests.rollback()
    assert list(guests) == [VM]
    guests.unregister(100)
    guests.mark_written()
    guests.rollback()
    assert list(guests) == []


def record(inode: int, parent: int, name: str, *, version: int = 0) -> Record:
    """A file if its name has a dot, else a directory."""
    kind = 8 if "." in name else 4
    return Record(inode, parent, version or inode, 1, 1, kind, name.encode(), None)


def test_rebuilding_registers_exactly_the_files(guests: Guests) -> None:
    tree = Tree()
    tree.load(
        [
            record(2, 0, "nodes"),
            record(3, 2, "b"),
            record(4, 3, "qemu-server"),
            record(5, 3, "lxc"),
            record(6, 4, "7.conf", version=20),
            record(7, 5, "7.conf", version=9),
            record(8, 5, "8.conf"),
            record(9, 5, "x.conf"),
            record(10, 2, "stray.conf"),
        ]
    )
    guests.rebuild(tree)
    guests.rollback()
    assert sorted(guests) == [GuestPath(7, "b", "qemu"), GuestPath(8, "b", "lxc")]


def test_rebuilding_from_a_directory_of_a_guest_name_registers_nothing(guests: Guests) -> None:
    tree = Tree()
    directory = tree.root
    for name in ("nodes", "a", "lxc", "100.conf"):
        directory = tree.create(directory, name, 4, writer=1, mtime=1)
    guests.rebuild(tree)
    assert list(guests) == []
