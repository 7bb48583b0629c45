"""Which of database and journal is right after a start, the replay, and what is left over."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmxcfs.messages import Create, Delete, Mkdir, Mtime, Mutation, Rename, Unlock, Write
from pmxcfs.storage import records, segments
from pmxcfs.storage.divergence import ENDING, Note, Removal
from pmxcfs.storage.kept_copies import OTHER_DATABASE, kept_copies
from pmxcfs.storage.kept_journals import read_kept_tree
from pmxcfs.storage.recovery import recover, settle
from tests.conftest import ExpectLog
from tests.fakes.data.trees import at
from tests.fakes.doubles.journals import LINEAGE, JournalingNode, content, restart, write

NOW = 1_795_000_000
DAMAGED = r"the journal is damaged: \d+ changes in it could not be applied; they are kept as .*"
OTHER = r"the database is not the one that the journal goes on from, .*; they are kept as .*"
ONLY = "changed in the journal only: "

PATHS = ["a", "b", "a/b", "a/c", "b/c", "nodes", "nodes/n", "nodes/n/lxc", "priv", "priv/lock"]
PATHS += ["priv/lock/x", "nodes/n/lxc/100.conf", "nodes/n/lxc/101.conf"]
paths = st.sampled_from(PATHS)
mutations = st.one_of(
    st.builds(Mkdir, paths),
    st.builds(Create, paths),
    st.builds(Write, paths, st.integers(0, 5), st.binary(min_size=1, max_size=9), st.booleans()),
    st.builds(Delete, paths),
    st.builds(Rename, paths, paths),
    st.builds(Mtime, paths, st.integers(0, 9)),
    st.builds(Unlock, paths, st.just(bytes(32))),
)

steps = st.lists(mutations, max_size=15)


def kept(journal: Path) -> Path:
    """Return the only kept part of a journal."""
    (copy,) = kept_copies(journal.parent)
    return copy.path


# The replay


def test_changes_since_the_save_are_replayed(node: JournalingNode, journal: Path) -> None:
    node.change(Mkdir("d"), Create("d/f"))
    found = node.save()
    node.change(write("d/f", b"new"), Delete("d/f"), Create("g"), writer=3, mtime=77)
    recovered = recover(found, journal)
    assert content(recovered.tree) == content(node.tree)
    assert (at(recovered.tree, "g").writer, at(recovered.tree, "g").mtime) == (3, 77)
    assert (recovered.replayed, recovered.sequence) == (3, node.sequence)
    assert recovered.unsaved == {3, 6}
    assert recovered.lineage == LINEAGE
    assert not recovered.must_save
    assert recovered.left_over is None


@given(
    before=steps,
    during=st.lists(mutations, max_size=5),
    after=steps,
    size=st.integers(1, 6),
    data=st.data(),
)
def test_a_replay_equals_what_was_applied_up_to_each_cut(
    tmp_path_factory: pytest.TempPathFactory,
    before: list[Mutation],
    during: list[Mutation],
    after: list[Mutation],
    size: int,
    data: st.DataObject,
) -> None:
    journal = tmp_path_factory.mktemp("state") / "journal"
    node = JournalingNode(journal)
    node.change(Mkdir("nodes"), Mkdir("nodes/n"), Mkdir("nodes/n/lxc"), *before)
    found = node.begin_save()
    node.change(*during)
    assert found.mark is not None
    node.append(records.Saved(found.mark.save_id))
    states = {node.position: (content(node.tree), node.tree.checksum())}  # by place in the journal
    for number, mutation in enumerate(after, 1):
        node.change(mutation)
        states[node.position] = content(node.tree), node.tree.checksum()
        if number % size == 0:
            node.begin_segment()
            states[node.position] = content(node.tree), node.tree.checksum()
    places = list(states)
    cut = data.draw(st.sampled_from(places))
    for path in journal.iterdir():
        if path.name > segments.name_of(cut.segment):
            path.unlink()
    path = journal / segments.name_of(cut.segment)
    ends = [place.offset for place in places if place.segment == cut.segment]
    end = min((end for end in ends if end > cut.offset), default=path.stat().st_size + 1)
    os.truncate(path, data.draw(st.integers(cut.offset, end - 1)))  # also within a record
    recovered = recover(found, journal)
    assert (content(recovered.tree), recovered.tree.checksum()) == states[cut]
    assert recovered.left_over is None


@given(before=steps, after=steps, data=st.data())
def test_any_damage_gives_a_state_that_was_there(
    tmp_path_factory: pytest.TempPathFactory,
    before: list[Mutation],
    after: list[Mutation],
    data: st.DataObject,
) -> None:
    journal = tmp_path_factory.mktemp("state") / "journal"
    node = JournalingNode(journal)
    node.change(*before)
    found = node.save()
    states = [list(found.records)]
    for mutation in after:
        node.change(mutation)
        states.append(content(node.tree))
    raw = bytearray(node.segment.read_bytes())
    start = data.draw(st.integers(0, len(raw) - 1))
    length = data.draw(st.integers(1, len(raw) - start))
    raw[start : start + length] = data.draw(st.binary(min_size=length, max_size=length))
    node.segment.write_bytes(raw)
    recovered = recover(found, journal)
    assert content(recovered.tree) in states
    assert recovered.left_over is None or recovered.must_save


def test_a_refused_rename_that_removed_its_target_is_replayed(
    node: JournalingNode, journal: Path
) -> None:
    node.change(Mkdir("d"), Create("d/f"), Mkdir("e"))
    found = node.save()
    node.change(Rename("d", "e"))
    assert node.tree.find("e") is None
    assert node.tree.version == 4
    recovered = recover(found, journal)
    assert content(recovered.tree) == content(node.tree)
    assert recovered.unsaved == {4}


def test_a_journal_without_changes_since_the_save_gives_the_database(
    node: JournalingNode, journal: Path
) -> None:
    node.change(Create("f"))
    found = node.save()
    recovered = recover(found, journal)
    assert content(recovered.tree) == content(node.tree)
    assert (recovered.replayed, recovered.must_save) == (0, False)


def test_a_save_whose_commit_is_the_last_that_happened_counts(
    node: JournalingNode, journal: Path
) -> None:
    node.save()
    node.change(Create("f"))
    found = node.begin_save()  # SAVED was not appended any more
    node.change(Create("g"))
    recovered = recover(found, journal)
    assert content(recovered.tree) == content(node.tree)
    assert recovered.replayed == 1


def test_a_save_that_was_not_committed_does_not_matter(node: JournalingNode, journal: Path) -> None:
    found = node.save()
    node.change(Create("f"))
    node.begin_save()
    node.change(Create("g"))
    recovered = recover(found, journal)
    assert content(recovered.tree) == content(node.tree)
    assert recovered.replayed == 2


def test_what_was_written_while_the_batch_was_taken_is_replayed(
    node: JournalingNode, journal: Path
) -> None:
    batch = node.take_batch()
    node.change(Create("f"))
    found = node.begin_save(batch)
    node.change(Create("g"))
    recovered = recover(found, journal)
    assert content(recovered.tree) == content(node.tree)
    assert recovered.replayed == 2


def test_segments_before_the_position_are_not_needed(node: JournalingNode, journal: Path) -> None:
    node.change(Create("f"))
    old = node.segment
    node.begin_segment()
    found = node.save()
    node.change(Create("g"))
    old.unlink()
    assert content(recover(found, journal).tree) == content(node.tree)


def test_a_position_at_the_end_of_a_segment_goes_on_in_the_next(
    node: JournalingNode, journal: Path
) -> None:
    node.change(Create("f"))
    batch = node.take_batch()
    node.begin_segment()
    found = node.begin_save(batch)
    node.change(Create("g"))
    recovered = recover(found, journal)
    assert content(recovered.tree) == content(node.tree)
    assert recovered.replayed == 1


def test_damage_before_the_position_does_not_matter(node: JournalingNode, journal: Path) -> None:
    node.change(Create("f"))
    found = node.save()
    node.change(Create("g"))
    raw = node.segment.read_bytes()
    assert found.mark is not None
    offset = found.mark.position.offset
    node.segment.write_bytes(bytes(offset) + raw[offset:])
    recovered = recover(found, journal)
    assert content(recovered.tree) == content(node.tree)
    assert (recovered.replayed, recovered.left_over) == (1, None)


def test_what_repairs_have_changed_keeps_the_mtime_0(node: JournalingNode, journal: Path) -> None:
    node.change(Create("f"))
    found = node.save()._replace(repairs=["entry 7: moved"])
    node.change(Create("g"), mtime=9)
    recovered = recover(found, journal)
    assert recovered.tree.root.mtime == 0
    assert recovered.tree.version == node.tree.version
    assert at(recovered.tree, "g").mtime == 9
    assert recovered.must_save
    assert recovered.repairs == ["entry 7: moved"]


def test_a_new_segment_goes_on_where_the_replay_ended(node: JournalingNode, journal: Path) -> None:
    found = node.save()
    node.change(Create("f"))
    second = restart(recover(found, journal), journal)
    second.change(Create("g"))
    third = restart(recover(found, journal), journal)
    third.change(Create("h"))
    recovered = recover(found, journal)
    assert content(recovered.tree) == content(third.tree)
    assert recovered.replayed == 3


def test_restarts_without_changes_leave_no_empty_segments(
    node: JournalingNode, journal: Path
) -> None:
    found = node.save()
    for _ in range(3):
        node = restart(recover(found, journal), journal)
    assert len(list(journal.iterdir())) == 2


# Removals and notes


def test_removals_that_other_nodes_may_miss_are_collected(
    node: JournalingNode, journal: Path
) -> None:
    node.change(Create("f"), Create("g"), Create("h"))
    found = node.save()._replace(notes={2: Note(3, 3), 3: Note(1, ENDING)})
    node.change(Delete("f"), Rename("h", "g"), Delete("g"))
    recovered = recover(found, journal)
    assert recovered.removals == [Removal(2, 5, b"f"), Removal(3, 6, b"g")]
    assert recovered.unsaved == {2, 3, 4}


def test_no_removal_is_collected_without_notes(node: JournalingNode, journal: Path) -> None:
    node.change(Create("f"))
    found = node.save()
    node.change(Delete("f"))
    assert recover(found, journal).removals == []


# Another database


def test_a_database_without_a_journal_begins_a_lineage(tmp_path: Path) -> None:
    node = JournalingNode(tmp_path / "elsewhere")
    node.change(Create("f"))
    recovered = recover(node.found(), tmp_path / "journal")
    assert content(recovered.tree) == content(node.tree)
    assert len(recovered.lineage) == 16
    assert (recovered.sequence, recovered.must_save) == (1, True)
    assert settle(recovered, tmp_path / "journal", now=NOW) is None


def test_an_older_copy_of_the_database_counts_and_the_changes_since_are_kept(
    node: JournalingNode, journal: Path, expect_log: ExpectLog
) -> None:
    node.change(Create("f"))
    found = node.save()
    node.change(write("f", b"later"), Create("tmp"), Rename("tmp", "g"))
    node.change(Mkdir("priv"), Create("priv/shadow.cfg"))
    node.save()
    recovered = recover(found, journal)
    assert content(recovered.tree) == [*found.records]
    assert recovered.lineage != LINEAGE
    assert recovered.sequence == node.sequence
    assert recovered.must_save
    expect_log(OTHER)
    for path in ("f", "g", "private entry 6", "private entry 7"):
        expect_log(ONLY + path)
    copy = settle(recovered, journal, now=NOW)
    assert copy == kept(journal) == journal.parent / "conflicts" / f"{NOW}.journal"
    assert copy.stat().st_mode & 0o777 == 0o600
    (described,) = kept_copies(journal.parent)
    assert described.description.reason == OTHER_DATABASE
    assert described.description.replaced == ["f", "g", "priv", "priv/shadow.cfg"]
    tree, lacking = read_kept_tree(copy)
    assert tree.find("tmp") is None
    assert at(tree, "priv/shadow.cfg").content == b""
    assert not lacking
    assert node.segment.exists()  # history


def test_another_nodes_database_counts_and_only_unsaved_changes_are_kept(
    node: JournalingNode, journal: Path, tmp_path: Path, expect_log: ExpectLog
) -> None:
    other = JournalingNode(tmp_path / "other", lineage=b"o" * 16)
    other.change(Create("theirs"))
    backup = other.save()
    node.change(Create("saved"))
    node.save()
    node.change(Create("unsaved"))
    recovered = recover(backup, journal)
    assert content(recovered.tree) == content(other.tree)
    assert recovered.lineage not in (LINEAGE, b"o" * 16)
    expect_log(OTHER)
    expect_log(ONLY + "unsaved")
    settle(recovered, journal, now=NOW)


@pytest.mark.parametrize("has_mark", [True, False])
def test_a_database_that_another_program_has_changed_after_a_stop_counts_silently(
    node: JournalingNode, journal: Path, has_mark: bool
) -> None:
    node.change(Create("f"))
    mark = node.save().mark
    original = JournalingNode(journal.parent / "unused", tree=node.tree)
    original.change(Create("g"))
    found = original.found(mark if has_mark else None)
    recovered = recover(found, journal)
    assert content(recovered.tree) == content(original.tree)
    assert recovered.lineage != LINEAGE
    assert settle(recovered, journal, now=NOW) is None


def test_changes_that_another_program_did_not_see_are_kept(
    node: JournalingNode, journal: Path, expect_log: ExpectLog
) -> None:
    mark = node.save().mark
    found = node.found(mark)
    node.change(Create("f"))
    row = found.version_row
    assert row is not None
    changed = found._replace(version_row=(*row[:2], row[2] + 1, *row[3:]))
    recovered = recover(changed, journal)
    assert content(recovered.tree) == list(found.records)
    expect_log(OTHER)
    expect_log(ONLY + "f")
    settle(recovered, journal, now=NOW)


def test_a_database_ahead_of_the_journal_counts(node: JournalingNode, journal: Path) -> None:
    size = node.segment.stat().st_size
    node.change(Create("f"))
    found = node.save()
    os.truncate(node.segment, size)  # what a power cut leaves of a journal that was not synced
    recovered = recover(found, journal)
    assert content(recovered.tree) == content(node.tree)
    assert recovered.must_save
    assert settle(recovered, journal, now=NOW) is None


def test_a_second_start_before_the_first_save_of_a_lineage_keeps_nothing_again(
    node: JournalingNode, journal: Path, expect_log: ExpectLog
) -> None:
    older = node.save()
    node.change(Create("f"))
    node.save()
    expect_log(OTHER)
    expect_log(ONLY + "f")
    restart(recover(older, journal), journal).begin_save()
    restart(recover(older, journal), journal).begin_save()
    assert kept(journal)
    other = JournalingNode(journal.parent / "other", lineage=b"o" * 16)
    restart(recover(other.save(), journal), journal)
    assert kept(journal)


def test_changes_of_a_new_lineage_are_replayed(
    node: JournalingNode, journal: Path, tmp_path: Path
) -> None:
    node.change(Create("f"))
    node.save()
    other = JournalingNode(tmp_path / "other", lineage=b"o" * 16)
    node = restart(recover(other.save(), journal), journal)
    found = node.save()
    node.change(Create("g"))
    recovered = recover(found, journal)
    assert content(recovered.tree) == content(node.tree)
    assert recovered.replayed == 1


# Checksums


def test_a_replay_from_the_rows_that_were_saved_agrees_with_their_checksum(
    node: JournalingNode, journal: Path
) -> None:
    node.change(Create("f"), Write("f", 0, b"x", True))
    found = node.save()
    saved = records.Check(node.tree.version, node.tree.checksum())
    node.change(Mkdir("d"))
    node.append(saved)  # a change can come before the checksum
    recovered = recover(found, journal)
    assert not recovered.is_altered
    assert not recovered.must_save
    assert recovered.tree.checksum() == node.tree.checksum()


def test_rows_that_were_altered_under_their_version_are_used_and_lead_no_synchronization(
    node: JournalingNode, journal: Path, expect_log: ExpectLog
) -> None:
    node.change(Create("f"), Write("f", 0, b"x", True))
    found = node.save()
    node.append(records.Check(node.tree.version, node.tree.checksum()))
    node.change(Mkdir("d"))
    altered = [r._replace(data=b"y") if r.name == b"f" else r for r in found.records]
    recovered = recover(found._replace(records=altered), journal)
    assert recovered.is_altered
    assert recovered.must_save
    assert recovered.tree.root.mtime == 0
    file = recovered.tree.find("f")
    assert file is not None
    assert file.content == b"y"
    assert recovered.tree.find("d") is not None  # which was replayed
    assert recovered.left_over is None
    expect_log("the rows of the database are not those that were saved")
    settle(recovered, journal, now=1)


def test_a_checksum_of_another_version_says_nothing(node: JournalingNode, journal: Path) -> None:
    node.change(Create("f"))
    found = node.save()
    node.append(records.Check(node.tree.version - 1, bytes(32)))
    assert not recover(found, journal).is_altered
