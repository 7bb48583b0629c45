"""Adoption with random pairs of similar trees: the result equals the leader's tree.

Inodes, names and directories come from small sets. So the trees share entries, but also have the
same inode at different paths, different inodes at the same path, moved directories with children,
and a file at the path of a directory. Our files have drafts, some of them in writeback.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from pmxcfs._core import Entry, Tree
from pmxcfs.messages import EntryType, Record
from pmxcfs.replica.replica import Policy, Replica
from pmxcfs.tree import index
from pmxcfs.tree.adoption import Reload
from tests.fakes.data.trees import ROOT, changed_in, found, made_a_tree, records_of, tree_of
from tests.fakes.doubles.replicas import replica_in
from tests.fakes.doubles.store import query
from tests.fakes.models.oracle import Layer, is_private

INODES = range(2, 12)
RAM = "/dev/shm" if os.path.isdir("/dev/shm") else None  # faster than a disk
Seen = dict[str, tuple[Entry, bytes, int]]  # path -> object, visible content, mtime


@st.composite
def entries(draw: st.DrawFn, inode: int) -> Record:
    """One entry with any parent."""
    is_file = draw(st.booleans())
    return Record(
        inode,
        parent=draw(st.sampled_from([0, 0, *INODES[:5]])),
        version=draw(st.integers(2, 4)),
        writer=1,
        mtime=draw(st.integers(1, 2)),
        type=EntryType.FILE if is_file else EntryType.DIRECTORY,
        name=draw(st.sampled_from([b"a", b"b", b"priv", b"\xff"])),
        data=draw(st.sampled_from([b"", b"x", b"12345"])) if is_file else None,
    )


@st.composite
def pairs(draw: st.DrawFn) -> tuple[list[Record], list[Record]]:
    """The entries of two trees."""
    ours, theirs = [], []
    for inode in INODES:
        record = draw(entries(inode))
        other = draw(st.one_of(st.just(record), st.just(record), entries(inode)))
        ours += [record] if draw(st.integers(0, 4)) else []
        theirs += [other] if draw(st.integers(0, 4)) else []
    ours, theirs = made_a_tree(ours), made_a_tree(theirs)
    # Their changes have higher versions than ours; divergence has other tests.
    return ours, [record if record in ours else newer(record) for record in theirs]


def newer(record: Record) -> Record:
    return record._replace(version=record.version + 60)


drafts = st.dictionaries(
    st.sampled_from(INODES), st.tuples(st.integers(0, 6), st.sampled_from([b"D", b"DRAFT"]))
)


@contextlib.contextmanager
def replica_of(records: list[Record]) -> Iterator[tuple[Replica, Path]]:
    """A replica with these entries and a saved database."""
    with (
        tempfile.TemporaryDirectory(dir=RAM) as directory,
        replica_in(Path(directory), policy=Policy.ROLL_BACK) as replica,
    ):
        replica.departures.set_nodes((1, 2))
        replica.departures.follow({1, 2}, me=1, version=1, now=0.0)
        become(replica, tree_of(*records))
        yield replica, Path(directory) / "config.db"


def become(replica: Replica, leader: Tree) -> Reload:
    """Adopt the leader's tree, and return the reload that the listener got."""
    reloads: list[Reload] = []
    replica.subscribe(on_reload=reloads.append)
    raw = leader.index()
    needed = index.records_needed(raw, [replica.state()])
    records = records_of(leader, needed)
    replica.adopt(raw, records, side=(2,), now=1, lock=contextlib.nullcontext())
    return reloads[0]


def walk(tree: Tree) -> list[Entry]:
    entries = tree.root.children()
    for entry in entries:
        entries += entry.children()
    return entries


def visible_content(tree: Tree) -> Seen:
    return {e.path: (e, e.read(0, 99) if not e.is_directory else b"", e.mtime) for e in walk(tree)}


@settings(max_examples=200)
@given(pair=pairs(), drafts=drafts, taken=st.sets(st.sampled_from(INODES)))
def test_an_adoption_gives_the_leaders_tree(
    pair: tuple[list[Record], list[Record]],
    drafts: dict[int, tuple[int, bytes]],
    taken: set[int],
) -> None:
    ours, theirs = pair
    leader = tree_of(*theirs, root=ROOT._replace(version=77, mtime=5))
    with replica_of(ours) as (replica, path):
        tree = replica.tree
        written = {}
        for inode, (offset, data) in drafts.items():
            entry = tree.get(inode)
            if entry is not None and not entry.is_directory:
                tree.write_unpublished(entry, offset, data, now_ns=1)
                gap = bytes(max(0, offset - entry.size))  # the write fills the gap, too
                written[inode] = Layer(offset - len(gap), gap + data, whole=False)
                if inode in taken:
                    tree.take_unpublished(entry)
        before = visible_content(tree)
        listings = {entry: set(names_in(entry)) for entry in [tree.root, *walk(tree)]}
        dirty = set(tree.unpublished())

        reload = become(replica, leader)

        after = visible_content(tree)
        assert tree.index() == leader.index()
        assert (tree.entry_count, tree.content_bytes) == (leader.entry_count, leader.content_bytes)
        assert {e.path: e.private for e in walk(tree)} == {p: is_private(p) for p in after}
        check_objects(before, after, written)
        check_reload(before, after, listings, reload, drafts)
        check_rows(tree, path)
        assert set(tree.unpublished()) == dirty
        for entry, *_ in [*before.values()]:
            tree.discard_unpublished(entry)
        assert tree.unpublished_growth == 0
        assert changed_in(tree) == {}


def names_in(entry: Entry) -> list[tuple[str, Entry]]:
    return [(child.name, child) for child in entry.children()]


def check_objects(before: Seen, after: Seen, written: dict[int, Layer]) -> None:
    """Objects are kept exactly if inode, path and type are; drafts stay with their object."""
    for path, (entry, seen, _) in before.items():
        new = after.get(path)
        is_same = new is not None and (new[0].inode, new[0].type) == (entry.inode, entry.type)
        assert (new is not None and new[0] is entry) == is_same
        assert entry.is_attached == is_same
        assert entry.path == path
        if not is_same:
            assert entry.is_directory or entry.read(0, 99) == seen
            assert entry.children() == []
        elif not entry.is_directory and entry.inode in written:
            assert entry.read(0, 99) == written[entry.inode].over(entry.content)


def check_reload(
    before: Seen,
    after: Seen,
    listings: dict[Entry, set[tuple[str, Entry]]],
    reload: Reload,
    drafts: dict[int, tuple[int, bytes]],
) -> None:
    """The reload has all visible changes, and no unchanged names."""
    changed = set()
    for directory in {*listings, *[entry for entry, *_ in after.values()]}:
        was, now = listings.get(directory, set()), set(names_in(directory))
        changed |= {(directory, name) for name, _ in was ^ now}
    assert set(reload.names) == changed
    assert len(reload.names) == len(changed)
    contents, attributes = set(reload.contents), set(reload.attributes)
    for path, (entry, seen, mtime) in before.items():
        if path in after and after[path][0] is entry:
            if after[path][1] != seen:
                assert entry in contents
            if after[path][2] != mtime:
                assert entry in contents | attributes
            if after[path][1:] == (seen, mtime) and entry.inode not in drafts:
                assert entry not in contents | attributes


def check_rows(tree: Tree, path: Path) -> None:
    """The database has the rows of the tree, and the version row of an adoption."""
    rows = query(path, "SELECT inode, parent, version, writer, mtime, type, name, data FROM tree")
    version, *rest = sorted(rows, key=lambda row: row[0])
    root = tree.root
    assert version == (0, 0, root.version, root.writer, root.mtime, 4, b"__version__", None)
    expected = records_of(tree, sorted(entry.inode for entry in walk(tree)))
    assert rest == [tuple(record._replace(data=record.data or None)) for record in expected]


@given(pair=pairs())
def test_adoptions_back_and_forth_give_the_leaders_tree(
    pair: tuple[list[Record], list[Record]],
) -> None:
    ours, theirs = pair
    with replica_of(ours) as (replica, path):
        for version, records in zip((100, 200, 300), (theirs, ours, theirs), strict=True):
            records = [record._replace(version=record.version + version) for record in records]
            leader = tree_of(*records, root=ROOT._replace(version=version + 70))
            become(replica, leader)
            assert replica.tree.index() == leader.index()
            check_rows(replica.tree, path)
        assert found(replica.tree, 0) is replica.tree.root
