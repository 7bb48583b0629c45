"""Random histories of the tree, compared with the oracle after every step.

A history has valid and invalid messages, local writes that are published later, discarded,
redirtied, or overtaken by messages of other nodes, and groups of changes that are saved or rolled
back.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from pmxcfs._core import Entry, Tree
from pmxcfs.errors import PmxcfsError
from pmxcfs.messages import Create, Delete, Mkdir, Mtime, Mutation, Record, Rename, Unlock, Write
from pmxcfs.text import to_bytes
from pmxcfs.tree import apply as delivery
from pmxcfs.tree.guests import GUEST_TYPES, Guests
from tests.fakes.data.trees import changed_in
from tests.fakes.models.oracle import Layer, Node, Oracle, Refused, is_private

SKELETON = ("nodes", "nodes/a", "nodes/a/lxc", "nodes/a/qemu-server", "priv", "priv/lock", "d")
LOCKS = ("priv/lock/a", "priv/lock/b", "priv/lock/a/b")
VMS = ("nodes/a/lxc/100.conf", "nodes/a/qemu-server/100.conf", "nodes/a/lxc/101.conf")
PLAIN = ("d", "d/f", "f", "nodes/a/priv", "d/priv", "privy")
NAMES = ("f", "g", "priv", "lock", "100.conf", "101.conf", "..", "\udcff")

names = st.sampled_from(NAMES)
paths = st.one_of(
    st.sampled_from(VMS),
    st.sampled_from(LOCKS),
    st.sampled_from(PLAIN),
    st.builds("{}/{}".format, st.sampled_from(SKELETON), names),
    st.builds("{}/{}/{}".format, st.sampled_from(SKELETON), names, names),
    names,
    st.sampled_from(SKELETON),
    st.sampled_from(["", "/", "//d//f/", "missing/f"]),
)
sizes = st.integers(0, 12)
offsets = st.one_of(sizes, st.sampled_from([(1 << 20) - 3, 1 << 20]))
datas = st.binary(max_size=6)
times = st.integers(0, 3)
mutations: st.SearchStrategy[Mutation] = st.one_of(
    st.builds(Write, paths, offsets, datas, st.booleans()),
    st.builds(Write, paths, sizes, datas, st.booleans()),
    st.builds(Mkdir, paths),
    st.builds(Delete, paths),
    st.builds(Rename, paths, paths),
    st.builds(Create, paths),
    st.builds(Mtime, paths, times),
    st.builds(Mtime, st.sampled_from(LOCKS), times),
)
File = tuple[Entry, Node]


def record_of(entry: Entry) -> Record:
    """Return the record of an entry in the database."""
    parent = entry.parent
    assert parent is not None
    stamp = (entry.version, entry.writer, entry.mtime)
    return Record(
        entry.inode, parent.inode, *stamp, entry.type, to_bytes(entry.name), entry.stored or None
    )


class Histories(RuleBasedStateMachine):
    """One history, applied to the tree and to the oracle."""

    files = Bundle("files")

    @initialize(target=files)
    def build(self) -> object:
        self.tree = Tree()
        self.guests = Guests()
        self.oracle = Oracle()
        self.opened: list[File] = []  # removed files included
        self.under_way: list[tuple[File, Layer]] = []  # writebacks, in the order they were taken
        self.saved: dict[int, Record] = {}
        self.paths: dict[Entry, str] = {}  # last path of each opened file
        self.now_ns = 0
        for path in (*SKELETON, *LOCKS):
            self.apply(Mkdir(path), writer=1, mtime=0)
        for path in ("f", "d/f", VMS[0]):
            self.apply(Create(path), writer=1, mtime=0)
        return multiple(*[self.open(path) for path in self.oracle.files()])

    # Messages.

    @rule(mutation=mutations, writer=st.integers(0, 2), mtime=times)
    def deliver(self, mutation: Mutation, writer: int, mtime: int) -> None:
        self.apply(mutation, writer=writer, mtime=mtime)

    @rule(path=st.one_of(st.sampled_from(LOCKS), paths), is_current=st.booleans())
    def deliver_unlock(self, path: str, is_current: bool) -> None:
        entry = self.tree.find(path)
        checksum = self.tree.entry_checksum(entry) if entry and is_current else bytes(32)
        self.apply(Unlock(path, checksum), writer=1, mtime=2)

    @rule(file=files, offset=sizes, data=datas, truncate=st.booleans())
    def deliver_write(self, file: File, offset: int, data: bytes, truncate: bool) -> None:
        if file[0].is_attached:
            self.apply(Write(file[0].path, offset, data, truncate), writer=2, mtime=2)

    @rule(offset=sizes, data=datas, truncate=st.booleans())
    @precondition(lambda self: self.under_way)
    def overtake(self, offset: int, data: bytes, truncate: bool) -> None:
        self.deliver_write(self.under_way[0][0], offset, data, truncate)

    def apply(self, mutation: Mutation, *, writer: int, mtime: int) -> bool:
        """Apply to tree and oracle and compare the errnos; return True if it was applied."""
        answer = expected = 0
        try:
            delivery.apply(self.tree, self.guests, mutation, writer=writer, mtime=mtime)
        except PmxcfsError as refusal:
            answer = refusal.errno
        try:
            self.oracle.apply(mutation, writer=writer, mtime=mtime)
        except Refused as refusal:
            expected = refusal.errno
        assert answer == expected
        return answer == 0

    # Local writers.

    @rule(target=files, number=st.integers(0, 99))
    @precondition(lambda self: self.oracle.files())
    def open_any(self, number: int) -> File:
        present = self.oracle.files()
        return self.open(present[number % len(present)])

    def open(self, path: str) -> File:
        entry, node = self.tree.find(path), self.oracle.find(path)
        assert entry is not None
        assert node is not None
        self.opened.append((entry, node))
        return entry, node

    @rule(file=files, offset=sizes, data=datas)
    def write(self, file: File, offset: int, data: bytes) -> None:
        self.now_ns += 1
        self.tree.write_unpublished(file[0], offset, data, now_ns=self.now_ns)
        self.oracle.write_unpublished(file[1], offset, data)

    @rule(file=files, size=sizes)
    def truncate(self, file: File, size: int) -> None:
        self.now_ns += 1
        self.tree.truncate_unpublished(file[0], size, now_ns=self.now_ns)
        self.oracle.truncate_unpublished(file[1], size)

    @rule(offset=sizes, data=datas)
    @precondition(lambda self: self.under_way)
    def write_behind(self, offset: int, data: bytes) -> None:
        self.write(self.under_way[-1][0], offset, data)

    @rule(file=files, data=datas.filter(bool), offset=sizes)
    def write_and_take(self, file: File, offset: int, data: bytes) -> None:
        self.write(file, offset, data)
        self.take(file)

    @rule(file=files)
    def take(self, file: File) -> None:
        taken = self.tree.take_unpublished(file[0])
        layer = self.oracle.take_unpublished(file[1])
        assert (tuple(taken) if taken else None) == layer
        if layer:
            assert layer.data or layer.offset == 0
            self.under_way.append((file, layer))

    @rule(order=st.sampled_from(["finish first", "finish last", "finish late"]), data=datas)
    @precondition(lambda self: self.under_way)
    def publish(self, order: str, data: bytes) -> None:
        file, layer = self.under_way.pop(0)
        if order == "finish first":
            self.finish(file)
        write = Write(file[0].path, layer.offset, layer.data, layer.whole)
        if not file[0].is_attached or not self.apply(write, writer=1, mtime=2):
            self.discard(file)
            return
        if order == "finish late":
            self.deliver_write(file, 0, data, truncate=False)
        if order != "finish first":
            self.finish(file)

    def finish(self, file: File) -> None:
        self.tree.finish_unpublished(file[0])
        self.oracle.finish_unpublished(file[1])

    @rule()
    @precondition(lambda self: self.under_way)
    def redirty(self) -> None:
        self.now_ns += 1
        (entry, node), _ = self.under_way.pop()
        self.tree.redirty_unpublished(entry, self.now_ns)
        self.oracle.redirty_unpublished(node)

    @rule(file=files)
    def discard(self, file: File) -> None:
        self.tree.discard_unpublished(file[0])
        self.oracle.discard_unpublished(file[1])
        self.under_way = [known for known in self.under_way if known[0] != file]

    @rule(file=files)
    def orphan(self, file: File) -> None:
        entry, node = file
        if not entry.is_attached and changed_in(self.tree) == {}:
            self.tree.orphan(entry)
            node.is_orphan = True

    # Saving.

    @rule()
    def save(self) -> None:
        for inode, entry in changed_in(self.tree).items():
            if entry is None:
                self.saved.pop(inode, None)
            else:
                self.saved[inode] = record_of(entry)
        for keeper in (self.tree, self.guests, self.oracle):
            keeper.mark_written()
        assert set(self.saved) == {node.inode for node in self.oracle.nodes.values()} - {0}
        if not any(node.is_sparse for node in self.oracle.nodes.values()):
            self.check_reload()

    def check_reload(self) -> None:
        """Check that the saved rows give the same tree, in any order."""
        root = self.tree.root
        stamp = (root.version, root.writer, root.mtime)
        fresh = Tree()
        fresh.load([*reversed(self.saved.values()), Record(0, 0, *stamp, 8, b"__version__", None)])
        assert fresh.checksum() == self.oracle.checksum()
        assert fresh.content_bytes == self.tree.content_bytes

    @rule()
    def rollback(self) -> None:
        touched = set(changed_in(self.tree))
        entries = self.tree.rollback()
        self.guests.rollback()
        self.oracle.rollback()
        assert {entry.inode for entry in entries} == touched
        assert changed_in(self.tree) == {}

    # Invariants.

    @invariant()
    def published_state_is_the_same(self) -> None:
        assert self.tree.checksum() == self.oracle.checksum()
        assert self.tree.index() == self.oracle.index()
        assert (self.tree.entry_count, self.tree.content_bytes) == self.oracle.totals()
        places = {str(guest.vmid): (guest.node, guest.type) for guest in self.guests}
        expected = {vmid: place.split("/") for vmid, place in self.oracle.guests.items()}
        assert places == {
            vmid: (node, GUEST_TYPES[kind]) for vmid, (node, kind) in expected.items()
        }

    @invariant()
    def every_path_leads_to_its_entry(self) -> None:
        for path, node in self.oracle.nodes.items():
            entry = self.tree.find(path)
            assert entry is not None
            assert entry is self.tree.get(node.inode)
            assert (entry.path, entry.is_attached) == (path, True)
            assert entry.private == is_private(path)
            assert sorted(child.name for child in entry.children()) == sorted(
                self.oracle.names(path)
            )

    @invariant()
    def open_files_read_the_same(self) -> None:
        for entry, node in self.opened:
            assert entry.read(0, 1 << 21) == node.visible
            assert entry.read(2, 3) == node.visible[2:5]
            assert entry.visible_size == len(node.visible)
            assert entry.content == node.content
            assert entry.has_unpublished == (node.dirty is not None and not node.is_orphan)
            assert entry.has_draft == bool(node.dirty or node.in_flight)
            assert entry.is_attached == (node in self.oracle.nodes.values())
            if entry.is_attached:
                self.paths[entry] = entry.path
            assert entry.path == self.paths[entry]

    @invariant()
    def unpublished_files_are_known(self) -> None:
        waiting = {entry for entry, node in self.opened if node.dirty and not node.is_orphan}
        listed = self.tree.unpublished()
        assert set(listed) == waiting
        since = [entry.unpublished_since_ns for entry in listed]
        assert since == sorted(since)
        assert 0 not in since
        nodes = {id(node): node for _, node in self.opened}.values()
        growths = [
            max(0, len(node.visible) - node.published.size) for node in nodes if not node.is_orphan
        ]
        assert self.tree.unpublished_growth == sum(growths)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=50)


def test_a_rollback_does_not_touch_the_writes_to_a_file_without_unsaved_changes() -> None:
    """More is written to saved, sparse content while a writeback runs, before the rollback."""
    history = Histories()
    history.build()
    file = next(each for each in history.opened if each[0].path == VMS[0])
    history.write_and_take(file, 0, b"\0")
    history.deliver_write(file, 1, b"", truncate=False)
    assert file[1].is_sparse
    history.save()
    history.write(file, 0, b"\0")
    history.rollback()
    history.open_files_read_the_same()
    history.take(file)
    assert history.under_way[-1][1] == Layer(0, b"\0", whole=False)
