"""What is known of the nodes that departed: which of this node's changes each of them may miss.

A departed node has a *note*, the last version of our tree that it surely had in common with us
(``storage/divergence.py:Note``). A node without a note has all of our tree. Notes are made

- when a node leaves the group while this node stays. Corosync delivers a message as soon as all
  earlier ones have arrived here, so this node may have changes of the last moments that the other
  side never got. Corosync notices a lost node after *token* + *consensus*; with a second for the
  processing that is the *room*. So the note is the version that this node had that long before.
- before a change that an absent node without a note does not get, with the version before it: no
  note was needed until then, for example since the start of the daemon.
- before another tree is adopted, in the same way, because its versions say nothing of ours.

A note is dropped when the node has the whole tree again: when a synchronization has shown that its
tree is ours, or when this node has adopted its tree. The commit of a node that adopts our tree
can't be seen, but a node that fails to commit leaves the group. So its note is dropped when all
members had the leader's last UPDATE, and have stayed for SETTLING seconds after that. Meanwhile it
is *ending*: if this node is left by the other, the note is as before; if this node ends or leaves
the group itself, there is no note.

Removals leave no entry that a note could tell of, so they are noted one by one: those of the last
*room* when a node departs, and later those of entries that an absent node may have.

Nothing here reads a clock, writes, or takes a lock: the caller holds the tree's lock, gives the
time, and saves the notes when ``is_saved`` is false.
Contract: docs/spec/cluster.md, "Forks".
"""

from collections import deque
from collections.abc import Collection, Iterable, Mapping

from pmxcfs.storage.divergence import ENDING, OTHERS, Note, Removal

SETTLING = 10.0  # seconds
PROCESSING = 1.0  # seconds, added to corosync's timeouts
DEFAULT_ROOM = 8.0  # seconds; corosync's defaults for three nodes come to 9, for two to 7.6


def room_for(token: int | None, consensus: int | None, *, nodes: int) -> float:
    """Return the room in seconds. *token* and *consensus*: milliseconds; None if unknown.

    Unknown values are corosync's defaults for a cluster of *nodes* nodes.
    """
    token = token or 3000 + 650 * max(nodes - 2, 0)
    consensus = consensus or token * 12 // 10
    return (token + consensus) / 1000 + PROCESSING


class Departures:
    """The notes of this node, and what is needed to make them."""

    def __init__(self, notes: Mapping[int, Note], removals: Iterable[Removal] = ()) -> None:
        self.notes = {n: note for n, note in notes.items() if note.parted != ENDING}
        self.removals = list(removals)  # those that an absent node may miss; not saved yet
        self.is_saved = len(self.notes) == len(notes)  # whether the journal or database has them
        self.is_due = True  # whether ``note_absent`` may have something to do
        self._me = OTHERS
        self._nodes: frozenset[int] | None = None  # the cluster's other nodes; None: not known yet
        self._members: frozenset[int] = frozenset()  # the other nodes in our group
        self._settled: frozenset[int] = frozenset()  # members that have our tree
        self._common_since: float | None = None  # all members have one tree since; monotonic
        self._ending: dict[int, Note] = {}  # ending notes as they were before
        self._room = DEFAULT_ROOM
        # (monotonic second, version): a version that our tree had then, by rising time. The first
        # is as old as the room, or the version of the first synchronization since the last join.
        self._versions: deque[tuple[float, int]] = deque()
        self._recent: deque[Removal] = deque()  # above the first of these versions
        self._shared = 0  # entries above this version were made after the last departure

    def set_nodes(self, nodes: Iterable[int], *, room: float = DEFAULT_ROOM) -> None:
        """Set the nodes of the cluster's configuration; drop the notes of all other nodes."""
        self._nodes = frozenset(nodes)
        self._room = room
        self.is_due = True
        kept = {nodeid: note for nodeid, note in self.notes.items() if nodeid in self._nodes}
        if OTHERS in self.notes:
            for nodeid in self._nodes - self._settled:
                kept.setdefault(nodeid, self.notes[OTHERS])
        self._replace(kept)

    def follow(self, members: Collection[int], *, me: int, version: int, now: float) -> None:
        """Make notes of nodes that have left the group, which has *members* now.

        *me* is this node's id, *version* our tree's. Without *me* this node has left the group, and
        the others have seen all that was delivered here before.
        """
        others = frozenset(members) - {me}
        if me in members:
            self._me = me  # known from the first join on
            self._reopen()
            self._part(self._members - others, version=version, now=now)
        else:
            self._versions.clear()
            self._recent.clear()
            self._replace({n: note for n, note in self.notes.items() if n not in self._ending})
            self._reopen()
        self._members = others
        self._settled &= others
        self.is_due = True

    def remember(self, version: int, *, now: float) -> None:
        """Note that our tree has *version* now. Call after each synchronization, then often."""
        versions = self._versions
        if not versions or versions[-1][1] != version:
            versions.append((now, version))
        while len(versions) > 1 and versions[1][0] <= now - self._room:
            versions.popleft()
        while self._recent and self._recent[0].version <= versions[0][1]:
            self._recent.popleft()

    def agree(self, nodes: Iterable[int]) -> None:
        """Drop the notes of *nodes*, which surely have our tree."""
        self._settled |= frozenset(nodes) & self._members
        self._replace({n: note for n, note in self.notes.items() if n not in self._settled})

    def settle(self, *, is_common: bool, now: float) -> None:
        """Drop the notes of the members if they have our tree. Call once a second.

        *is_common* tells whether all members had the leader's last UPDATE.
        """
        if not is_common:
            self._reopen()
        elif self._common_since is None:
            self._common_since = now
            self._ending = {n: note for n, note in self.notes.items() if n in self._members}
            ending = {n: Note(note.common, ENDING) for n, note in self._ending.items()}
            self._replace({**self.notes, **ending})
        elif now - self._common_since >= SETTLING and self._settled != self._members:
            self.agree(self._members)

    def note_absent(self, version: int) -> None:
        """Make a note of each absent node that has none: it has our tree up to *version*."""
        self.is_due = False
        self._shared = version
        self._make(self._others() - self._members, Note(version, version))

    def remove(self, inode: int, path: bytes, *, version: int) -> None:
        """Note that the entry *inode* at *path* was removed, if another node may miss that.

        *version* is that of our tree afterwards. ``note_absent`` was called before.
        """
        if self._members:
            self._recent.append(Removal(inode, version, path))
        if self.notes and inode <= self._shared:
            self.removals.append(Removal(inode, version, path))

    def begin_adoption(self, version: int, *, side: Collection[int]) -> Note | None:
        """Make a note of each node that has none and is not on the leader's *side*.

        Our tree has *version*. Members get a note, too: they may fail to adopt the leader's tree.
        Return the note of *side*, the oldest of its nodes' notes; None without any.
        """
        self._make((self._others() | self._members) - frozenset(side), Note(version, version))
        found = [self._note_of(nodeid) for nodeid in side]
        return min((note for note in found if note is not None), default=None)

    def after_adoption(self, *, side: Collection[int], fork: int | None) -> dict[int, Note]:
        """Return the notes that are right when our tree has become that of the leader's *side*.

        *fork* is the last version that the two trees have in common; None: the adopted tree has all
        of our changes. Other nodes do not have what the adopted tree has above *fork*. Until the
        tree is replaced the notes stay as they are, so that a crash finds those of our tree.
        """
        agreed = frozenset(side) & (self._settled | self._members)
        left = {nodeid: note for nodeid, note in self.notes.items() if nodeid not in agreed}
        if fork is None:
            return left
        return {
            nodeid: Note(min(note.common, fork), min(note.parted, fork))
            for nodeid, note in left.items()
        }

    def adopted(self, *, side: Collection[int], fork: int | None) -> None:
        """Note that our tree has become that of the leader's *side*; as in ``after_adoption``."""
        self._versions.clear()
        self._recent.clear()
        notes = self.after_adoption(side=side, fork=fork)
        self._settled = frozenset(side) & (self._settled | self._members)
        self._replace(notes)

    def _reopen(self) -> None:
        """Let no note end: the members may not have one tree, or not for much longer."""
        self._common_since = None
        again = {n: note for n, note in self._ending.items() if n in self.notes}
        self._replace({**self.notes, **again})
        self._ending = {}

    def _part(self, nodes: frozenset[int], *, version: int, now: float) -> None:
        """Note what *nodes*, which have left the group, may miss of the last moments."""
        note = Note(self._version_at(now - self._room, version), version)
        self._make(nodes, note)
        missed = [removal for removal in self._recent if removal.version > note.common]
        if nodes and missed:
            self.removals += missed
            self.is_saved = False

    def _version_at(self, moment: float, current: int) -> int:
        """Return a version that our tree had at *moment* or before, if one is known."""
        known = [version for seconds, version in self._versions if seconds <= moment]
        if known:
            return known[-1]
        return self._versions[0][1] if self._versions else current

    def _others(self) -> frozenset[int]:
        """Return the cluster's other nodes, as far as they are known."""
        return frozenset([OTHERS]) if self._nodes is None else self._nodes - {self._me}

    def _note_of(self, nodeid: int) -> Note | None:
        everyone = None if nodeid in self._settled else self.notes.get(OTHERS)
        return self.notes.get(nodeid, everyone)

    def _make(self, nodes: Iterable[int], note: Note) -> None:
        """Make *note* of each of *nodes* that has none."""
        made = {nodeid: note for nodeid in nodes if self._note_of(nodeid) is None}
        self._replace({**self.notes, **made})

    def _replace(self, notes: dict[int, Note]) -> None:
        if self._me != OTHERS:
            notes.pop(self._me, None)
        if notes != self.notes:
            self.notes = notes
            self.is_saved = False
