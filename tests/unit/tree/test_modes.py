"""Modes of entries by path, type and quorum."""

import stat

import pytest

from pmxcfs._core import Entry, Tree
from pmxcfs.messages import EntryType
from pmxcfs.tree.modes import changes_mode, is_private_path, is_script, mode_of, without_quorum


def entry_at(path: str, kind: EntryType) -> Entry:
    """Create an entry in a new tree, and return it."""
    tree = Tree()
    here = tree.root
    *above, last = path.split("/")
    for name in above:
        here = tree.create(here, name, EntryType.DIRECTORY, writer=1, mtime=1)
    return tree.create(here, last, kind, writer=1, mtime=1)


@pytest.mark.parametrize(
    ("path", "kind", "mode", "mode_without_quorum"),
    [
        ("f", EntryType.FILE, 0o640, 0o440),
        ("d", EntryType.DIRECTORY, 0o755, 0o555),
        ("priv", EntryType.DIRECTORY, 0o700, 0o500),
        ("priv/f", EntryType.FILE, 0o600, 0o400),
        ("priv/d/e/f", EntryType.FILE, 0o600, 0o400),
        ("nodes/a/priv", EntryType.DIRECTORY, 0o700, 0o500),
        ("nodes/a/priv/f", EntryType.FILE, 0o600, 0o400),
        ("nodes/a/f", EntryType.FILE, 0o640, 0o440),
        ("nodes/priv/f", EntryType.FILE, 0o640, 0o440),
        ("nodes/a/b/priv/f", EntryType.FILE, 0o640, 0o440),
        ("d/priv/f", EntryType.FILE, 0o640, 0o440),
        ("privy/f", EntryType.FILE, 0o640, 0o440),
        ("vps.mount", EntryType.FILE, 0o740, 0o540),
        ("priv/101.stop", EntryType.FILE, 0o700, 0o500),
        ("vps.start", EntryType.DIRECTORY, 0o755, 0o555),
    ],
)
def test_modes(path: str, kind: EntryType, mode: int, mode_without_quorum: int) -> None:
    entry = entry_at(path, kind)
    is_format = stat.S_IFDIR if kind is EntryType.DIRECTORY else stat.S_IFREG
    assert mode_of(entry, quorate=True) == is_format | mode
    assert mode_of(entry, quorate=False) == is_format | mode_without_quorum
    assert entry.private == is_private_path(path)


def test_the_root_keeps_its_mode_without_quorum() -> None:
    for quorate in (True, False):
        assert mode_of(Tree().root, quorate=quorate) == stat.S_IFDIR | 0o755


def test_links_lose_their_write_bits() -> None:
    assert without_quorum(stat.S_IFLNK | 0o755) == stat.S_IFLNK | 0o555


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((f"vps.{event}", True) for event in ("mount", "umount", "start", "stop")),
        ("100.premount", True),
        ("1.postumount", True),
        ("0.mount", False),
        ("01.mount", False),
        ("vps.restart", False),
        ("vps.mount.bak", False),
        ("xvps.mount", False),
        ("100.mount\n", False),
        ("\N{ARABIC-INDIC DIGIT ONE}.mount", False),
        (".mount", False),
        ("mount", False),
    ],
)
def test_script_names(name: str, expected: bool) -> None:
    assert is_script(name) is expected


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("f", "g", False),
        ("f", "d/f", False),
        ("f", "priv/f", True),
        ("priv/f", "priv/g", False),
        ("nodes/a/priv/f", "nodes/a/f", True),
        ("nodes/a/priv/f", "priv/f", False),
        ("f", "vps.mount", True),
        ("vps.mount", "100.mount", False),
        ("priv/vps.mount", "f", True),
    ],
)
def test_changes_mode(source: str, target: str, expected: bool) -> None:
    assert changes_mode(source, target) is expected
