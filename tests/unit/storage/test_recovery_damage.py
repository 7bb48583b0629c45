"""Recovery from damaged journals, and from records that end a replay."""

from pathlib import Path

from pmxcfs.messages import Create, Mkdir, Write
from pmxcfs.storage import records, segments
from pmxcfs.storage.kept_copies import DAMAGE, kept_copies
from pmxcfs.storage.kept_journals import read_kept_tree
from pmxcfs.storage.recovery import recover, settle
from pmxcfs.storage.schema import entries
from pmxcfs.tree.adoption import record_of
from tests.conftest import ExpectLog
from tests.fakes.data.trees import at
from tests.fakes.doubles.journals import JournalingNode, content, restart, write

NOW = 1_795_000_000
DAMAGED = r"the journal is damaged: \d+ changes in it could not be applied; they are kept as .*"
OTHER = r"the database is not the one that the journal goes on from, .*; they are kept as .*"
ONLY = "changed in the journal only: "


# Damage


def damage(path: Path, offset: int) -> None:
    """Flip a bit of a file."""
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 1
    path.write_bytes(raw)


def test_what_follows_damage_is_kept_and_the_journal_ends_before_it(
    node: JournalingNode, journal: Path, expect_log: ExpectLog
) -> None:
    found = node.save()
    node.change(Create("f"))
    states, place = content(node.tree), node.position
    node.change(Create("lost"))
    node.change(Create("g"))
    node.begin_segment()
    node.change(Create("h"))
    damage(journal / segments.name_of(place.segment), place.offset + 20)
    recovered = recover(found, journal)
    assert content(recovered.tree) == states
    assert recovered.sequence == place.sequence
    expect_log(DAMAGED)
    expect_log(ONLY + "g")
    expect_log(ONLY + "h")
    node = restart(recovered, journal)
    (described,) = kept_copies(journal.parent)
    assert described.description.reason == DAMAGE
    assert sorted(entry.path for entry in entries(read_kept_tree(described.path).tree)) == [
        "g",
        "h",
    ]
    assert (journal / segments.name_of(place.segment)).stat().st_size == place.offset
    node.change(Create("after"))
    again = recover(found, journal)
    assert content(again.tree) == content(node.tree)
    assert again.left_over is None


def test_a_torn_end_is_cut_off_silently(node: JournalingNode, journal: Path) -> None:
    found = node.save()
    node.change(Create("f"))
    size = node.segment.stat().st_size
    with node.segment.open("ab") as file:
        file.write(b"\x40\0\0\0 torn" + bytes(5000))
    recovered = recover(found, journal)
    assert content(recovered.tree) == content(node.tree)
    settle(recovered, journal, now=NOW)
    assert node.segment.stat().st_size == size
    assert not (journal.parent / "conflicts").exists()


def test_a_damaged_header_behind_the_position_does_not_matter(
    node: JournalingNode, journal: Path
) -> None:
    found = node.save()
    node.begin_segment()
    node.change(Create("f"))
    damage(node.segment, 0)
    assert content(recover(found, journal).tree) == content(node.tree)


def test_a_missing_segment_ends_the_replay(
    node: JournalingNode, journal: Path, expect_log: ExpectLog
) -> None:
    found = node.save()
    node.change(Create("f"))
    states = content(node.tree)
    node.begin_segment()
    middle = node.segment
    node.change(Create("g"))
    node.begin_segment()
    node.change(Create("h"))
    middle.unlink()
    recovered = recover(found, journal)
    assert content(recovered.tree) == states
    expect_log(DAMAGED)
    expect_log(ONLY + "h")
    settle(recovered, journal, now=NOW)
    assert len(list(journal.iterdir())) == 1


def test_a_change_that_does_not_lead_to_its_version_ends_the_replay(
    node: JournalingNode, journal: Path, expect_log: ExpectLog
) -> None:
    found = node.save()
    node.change(Create("f"))
    other = JournalingNode(journal.parent / "other")
    other.change(Create("x"), Create("x2"), Mkdir("d"), Create("d/f"))
    node.append(other.record(Create("y"), 5))
    recovered = recover(found, journal)
    assert content(recovered.tree) == content(node.tree)
    assert recovered.replayed == 1
    expect_log(DAMAGED)
    expect_log(ONLY + "y")
    settle(recovered, journal, now=NOW)


def test_the_same_is_not_kept_twice(
    node: JournalingNode, journal: Path, expect_log: ExpectLog
) -> None:
    found = node.save()
    node.change(Create("f"))
    node.save()
    expect_log(OTHER)
    expect_log(ONLY + "f")
    recovered = recover(found, journal)
    first = settle(recovered, journal, now=NOW)
    assert settle(recover(found, journal), journal, now=NOW + 1) == first
    assert len(kept_copies(journal.parent)) == 1


# Other records


def test_an_adoption_that_was_not_saved_ends_the_replay_silently(
    node: JournalingNode, journal: Path
) -> None:
    found = node.save()
    node.change(Create("f"))
    node.append(records.Adopted(2, 9, (b"f",)))
    recovered = recover(found, journal)
    assert content(recovered.tree) == content(node.tree)
    assert recovered.left_over is None
    assert recovered.sequence == node.sequence - 1


def test_a_gap_at_the_saved_version_is_passed(node: JournalingNode, journal: Path) -> None:
    node.change(Create("f"))
    found = node.save()
    node.append(records.Gap(2))
    node.change(Create("g"))
    assert content(recover(found, journal).tree) == content(node.tree)


def test_a_gap_ends_the_replay(node: JournalingNode, journal: Path, expect_log: ExpectLog) -> None:
    found = node.save()
    other = JournalingNode(journal.parent / "other")
    other.change(Create("lost"), Create("f"))
    node.append(records.Gap(2), other.record(Create("f"), 3))
    recovered = recover(found, journal)
    assert list(content(recovered.tree)) == list(found.records)
    expect_log(DAMAGED)
    expect_log(ONLY + "f")
    settle(recovered, journal, now=NOW)


def test_a_kept_journal_shows_files_from_the_rows_before_their_changes(
    node: JournalingNode, journal: Path, expect_log: ExpectLog
) -> None:
    node.change(Mkdir("d"), Create("d/f"), write("d/f", b"old text"))
    found = node.save()
    row = record_of(at(node.tree, "d/f"))
    node.append(
        records.Before(
            False, row.inode, row.parent, row.version, 1, 5, 8, 8, 0, b"f", b"d/f", b"old text"
        )
    )
    node.change(Write("d/f", 0, b"new", truncate=False))
    node.save()
    expect_log(OTHER)
    expect_log(ONLY + "d/f")
    copy = settle(recover(found, journal), journal, now=NOW)
    assert copy is not None
    assert at(read_kept_tree(copy).tree, "d/f").content == b"new text"
