"""New files on several nodes at once: equal trees, true answers, and nothing left pending."""

import contextlib

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from pmxcfs._core import Entry
from pmxcfs.errors import Busy, Failed, PmxcfsError, Signaled
from pmxcfs.vfs.pending import was_in_tree
from pmxcfs.vfs.writeback import PUBLISH_AFTER_NS, OpenFile
from tests.fakes.simulation.total_order import Member, Order

NAMES = ("a", "b", "c")
DIRECTORIES = ("", "d")
MAX_DEPTH = 3  # of actions that happen while another one waits
ACTIONS = (
    *["make"] * 6,
    *["write"] * 5,
    *["close"] * 6,
    *["rename"] * 3,
    *["deliver"] * 3,
    *["unlink", "mkdir", "rmdir", "utime", "fsync", "pass_time", "lose_sync", "look_up"],
)


class Program:
    """An open file of a program, and what it has written."""

    def __init__(self, handle: OpenFile) -> None:
        self.handle = handle
        self.last = b""  # written, and not told to be published yet


class History:
    """Programs on several nodes that use the same few names."""

    def __init__(self, size: int, choices: list[int]) -> None:
        self.order = Order(size, choices)
        self.order.on_wait = self._on_wait
        self.programs: dict[Member, list[Program]] = {one: [] for one in self.order.members}
        self.replaced: dict[Entry, list[bytes]] = {}  # what was written to each file, in order
        self.tokens = 0
        self.is_over = False

    def choose(self, count: int) -> int:
        return self.order.choose(count)

    def _on_wait(self, member: Member) -> None:
        if not self.is_over and sum(one.depth for one in self.order.members) < MAX_DEPTH:
            for _ in range(self.choose(3)):
                self.act()

    def act(self) -> None:
        """Let a program on any node do something; a refusal is an answer, too."""
        member = self.order.members[self.choose(len(self.order.members))]
        action = ACTIONS[self.choose(len(ACTIONS))]
        note(f"{member.number} begins {action}")
        try:
            getattr(self, action)(member)
        except PmxcfsError as error:
            note(f"{member.number} gets {error!r} of {action}")
        else:
            note(f"{member.number} has done {action}")

    # Actions

    def _place(self, member: Member) -> tuple[Entry, str] | None:
        directory = member.tree.find(DIRECTORIES[self.choose(len(DIRECTORIES))])
        name = NAMES[self.choose(len(NAMES))]
        return None if directory is None or not directory.is_directory else (directory, name)

    def _found(self, member: Member) -> Entry | None:
        place = self._place(member)
        if place is None:
            return None
        directory, name = place
        return directory.child(name) or member.files.pending.find(directory, name)

    def make(self, member: Member) -> None:
        place = self._place(member)
        if place is None:
            return
        truncate, exclusive = self.choose(2) == 0, self.choose(6) == 1
        directory, name = place
        found = directory.child(name) or member.files.pending.find(directory, name)
        if found is not None:
            if found.is_directory or exclusive:
                return
            handle = member.files.open(found, writing=True, truncate=truncate)
        else:
            entry = member.files.create(directory, name, exclusive=exclusive, later=not exclusive)
            is_pending = entry in member.files.pending.files
            handle = member.files.open(
                entry, writing=True, truncate=truncate and is_pending, has_created=True
            )
        member.known.add(handle.entry)
        if truncate:
            self.replaced.setdefault(handle.entry, []).append(b"")
        self.programs[member].append(Program(handle))

    def _program(self, member: Member) -> Program | None:
        programs = self.programs[member]
        return programs[self.choose(len(programs))] if programs else None

    def write(self, member: Member) -> None:
        program = self._program(member)
        if program is None:
            return
        self.tokens += 1
        token = b"%08d" % self.tokens
        try:
            member.files.write(program.handle, 0, token)
        except PmxcfsError:
            program.last = b""
            raise
        program.last = token
        self.replaced.setdefault(program.handle.entry, []).append(token)

    def close(self, member: Member) -> None:
        program = self._program(member)
        if program is not None:
            self.finish(member, program)

    def finish(self, member: Member, program: Program) -> None:
        """Close the file of *program* and check the answer."""
        handle, last = program.handle, program.last
        self.programs[member].remove(program)
        try:
            member.files.writeback.flush(handle)
        except (Busy, Failed, Signaled):
            pass  # what could not be published now may be published by the release, or later
        except PmxcfsError:
            assert not self._is_written(last), "an error for what was published"
        else:
            if last and not handle.entry.is_orphan:
                self._check_object(member, handle.entry)
                later = self.replaced[handle.entry]
                later = later[later.index(last) :]
                is_cut = b"" in later
                assert is_cut or any(map(self._is_written, later)), "success, but not published"
        member.files.release(handle)

    def _check_object(self, member: Member, entry: Entry) -> None:
        """Check that a published file is the tree's, unless the kernel has another one there."""
        if not was_in_tree(entry):
            found = member.tree.find(entry.path)
            assert found is None or found.is_directory or found in member.known

    def _is_written(self, token: bytes) -> bool:
        return bool(token) and any(data.startswith(token) for data in self.order.written)

    def rename(self, member: Member) -> None:
        entry, place = self._found(member), self._place(member)
        if entry is None or place is None or entry.parent is None:
            return
        directory, name = place
        if (entry.parent, entry.name) == place or directory is entry:
            return
        target = directory.child(name)
        if target is not None and target.is_directory != entry.is_directory:
            return  # the kernel refuses that
        member.known.add(entry)
        member.files.rename(entry, directory, name)

    def deliver(self, member: Member) -> None:
        if not member.depth:
            member.deliver(self.choose(8))

    def unlink(self, member: Member) -> None:
        entry = self._found(member)
        if entry is not None and not entry.is_directory:
            member.files.unlink(entry)

    def mkdir(self, member: Member) -> None:
        if self.choose(3):
            member.files.mkdir(member.tree.root, "d")
        elif (place := self._place(member)) is not None:
            member.files.mkdir(*place)

    def rmdir(self, member: Member) -> None:
        entry = member.tree.find("d") if self.choose(2) else self._found(member)
        if entry is not None and entry.is_directory:
            member.files.rmdir(entry)

    def utime(self, member: Member) -> None:
        entry = self._found(member)
        if entry is not None and not entry.is_directory:
            member.files.utime(entry, 9)

    def fsync(self, member: Member) -> None:
        program = self._program(member)
        if program is None:
            return
        try:
            member.files.writeback.fsync(program.handle)
        except PmxcfsError:
            program.last = b""  # it was told of what it has written
            raise

    def pass_time(self, member: Member) -> None:
        member.now_ns += PUBLISH_AFTER_NS
        member.files.writeback.publish_due()

    def lose_sync(self, member: Member) -> None:
        member.is_in_sync = not member.is_in_sync

    def look_up(self, member: Member) -> None:
        entry = self._found(member)
        if entry is not None:
            member.known.add(entry)

    # The end

    def end(self) -> None:
        """Close all files, deliver everything, and check that nothing is left."""
        self.is_over = True
        for member in self.order.members:
            for program in list(self.programs[member]):
                self.finish(member, program)
        for member in self.order.members:
            while member.files.pending.files or member.tree.unpublished():
                member.files.writeback.publish_all()
        for member in self.order.members:
            member.catch_up()
            pending = member.files.pending
            assert not pending.files
            assert not pending.by_directory
            assert not member.tree.unpublished()
            assert member.tree.unpublished_growth == 0
            assert member.tree.index() == self.order.tree.index()
            check_table(member)


def check_table(member: Member) -> None:
    """Check that the entries that are reached are those of the table."""
    waiting = [member.tree.root]
    count = -1
    while waiting:
        entry = waiting.pop()
        count += 1
        assert member.tree.get(entry.inode) is entry
        assert member.tree.find(entry.path) is entry
        for child in entry.children():
            assert child.parent is entry
        waiting += entry.children()
    for entry in member.known:
        assert member.tree.get(entry.inode) in (None, entry), "another object has its place"
    assert count == member.tree.entry_count


@pytest.mark.expect_log(r"the new file .* is removed|last writes to .* are lost")
@settings(max_examples=400, deadline=None)
@given(
    size=st.integers(1, 3),
    choices=st.lists(st.integers(0, 2**16), min_size=50, max_size=400),
)
def test_nodes_that_make_the_same_files_agree(size: int, choices: list[int]) -> None:
    history = History(size, choices)
    with contextlib.suppress(PmxcfsError):
        history.mkdir(history.order.members[0])
    for _ in range(len(choices) // 6):
        history.act()
    history.end()
