"""State machines and trees on a random bus: members that saw the same events agree.

The bus is as hostile as corosync may be: it orders messages in any way, lets nodes read slowly,
breaks and joins rings at any moment, and refuses messages. With *loses_tails* the parts of a broken
ring have received different messages. With *is_wild* histories fork: every node counts as quorate,
so all parts go on, and processes die before they have read the messages that they received.
"""

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmxcfs.dfsm.timeouts import Deadlines
from pmxcfs.messages import Body, Create, Delete, Group, Member, Mkdir, SetKey, Write
from tests.fakes.simulation.bus import all_received
from tests.fakes.simulation.cluster import Cluster
from tests.fakes.simulation.peer import Peer, TreeContent, Wish

DEADLINES = Deadlines(
    restarts=(3.0, 6.0),
    silence=12.0,
    updates=5.0,
    leave_interval=8.0,
    rejoin=2.0,
    verification=10.0,
)
PATIENCE = 120  # seconds until all nodes must be synced after the last fault
ACTIONS = (
    *["step"] * 12,
    *["order"] * 10,
    *["wish"] * 5,
    *["tick"] * 2,
    *["split", "heal", "start", "start", "kill", "crash", "block", "unblock", "run"],
)


Steps = list[tuple[str, int, int]]


class History:
    """A cluster driven by numbers; any numbers make a legal history."""

    def __init__(
        self, size: int, *, group: Group = Group.TREE, loses_tails: bool, is_wild: bool = False
    ) -> None:
        self.said: list[str] = []
        self.cluster = Cluster(
            range(1, size + 1),
            group=group,
            deadlines=DEADLINES,
            counts_members=True,
            tell=lambda node, text: self.said.append(text),
        )
        self.group = group
        self.loses_tails = loses_tails
        self.is_wild = is_wild
        self.ever: list[Peer] = []  # all processes that have run
        self.wishes: list[tuple[Peer, Wish]] = []
        for node in range(1, size + 1):
            self.start(node, 0)

    def act(self, action: str, first: int, second: int) -> None:
        """Do *action* on the node that *first* chooses."""
        node = first % self.cluster.size + 1
        does: Callable[[int, int], object] = getattr(self, action)
        does(node, second)

    def step(self, node: int, second: int) -> None:
        for _ in range(second % 4 + 1):
            self.cluster.step(node)

    def order(self, node: int, second: int) -> None:
        for _ in range(second % 3 + 1):
            self.cluster.order(node)

    def run(self, _node: int, _second: int) -> None:
        self.cluster.run()

    def start(self, node: int, _second: int) -> None:
        if node not in self.cluster.peers and node not in self.cluster.bus.ports:
            self.cluster.start(node)
            peer = self.cluster.peers[node]
            peer.is_forced = self.is_wild
            self.ever.append(peer)

    def kill(self, node: int, _second: int) -> None:
        if node in self.cluster.peers:
            self.settle(node)
            self.cluster.kill(node)

    def crash(self, node: int, second: int) -> None:
        if node in self.cluster.peers:
            self.settle(node)
            self.cluster.crash(node, cut=self.cut(second))

    def settle(self, node: int) -> None:
        """Let a process send and read all its messages before it dies, unless *is_wild*."""
        while not self.is_wild and (self.cluster.step(node) or self.cluster.order(node)):
            pass

    def split(self, _node: int, second: int) -> None:
        parts: list[list[int]] = [[], [], []]
        for node in range(1, self.cluster.size + 1):
            parts[(second >> 2 * node) % 3].append(node)
        one_by_one = second % 2 == 1
        self.cluster.split(filter(None, parts), cut=self.cut(second), one_by_one=one_by_one)

    def heal(self, _node: int, second: int) -> None:
        self.cluster.heal(one_by_one=second % 2 == 1)

    def cut(self, second: int) -> Callable[[int, int], int]:
        """Choose the place in a broken ring's order up to which all its parts have received it."""
        if not self.loses_tails:
            return all_received
        return lambda lowest, highest: lowest + second % (highest - lowest + 1)

    def tick(self, node: int, second: int) -> None:
        self.cluster.now = self.cluster.now._replace(
            wall=self.cluster.now.wall + second % 4,
            monotonic=self.cluster.now.monotonic + second % 4,
        )
        if node in self.cluster.peers:
            self.cluster.peers[node].tick(self.cluster.now)

    def block(self, node: int, second: int) -> None:
        if node in self.cluster.peers:
            peer = self.cluster.peers[node]
            peer.is_blocked, peer.allowance = True, second % 4

    def unblock(self, node: int, _second: int) -> None:
        if node in self.cluster.peers:
            self.cluster.peers[node].is_blocked = False

    def wish(self, node: int, second: int) -> None:
        if node in self.cluster.peers:
            peer = self.cluster.peers[node]
            self.wishes.append((peer, peer.wish(self.body(second))))

    def body(self, second: int) -> Body:
        if self.group is Group.STATUS:
            return SetKey("key", b"%d" % len(self.wishes))
        choices = (
            Mkdir(f"unique{len(self.wishes)}"),
            Create("f"),
            Write("f", second % 5, b"%d" % second, truncate=second % 2 == 1),
            Delete("f"),
        )
        return choices[second % 4]

    def end_well(self) -> None:
        """Start, unblock and join all nodes; assert that the cluster then gets synced by itself."""
        self.cluster.run()
        for node in range(1, self.cluster.size + 1):
            self.start(node, 0)
            self.unblock(node, 0)
        self.cluster.heal()
        self.cluster.run()
        for _ in range(PATIENCE):
            if self.is_at_rest():
                return
            self.cluster.tick(1)
        pytest.fail(f"not at rest: {[p.dfsm.mode for p in self.cluster.peers.values()]}")

    def is_at_rest(self) -> bool:
        peers = self.cluster.peers.values()
        return all(p.dfsm.is_synced and len(p.dfsm.members) == self.cluster.size for p in peers)


histories = st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.integers(0, 9), st.integers(0, 9999)),
    min_size=100,
    max_size=300,
)


def play(history: History, steps: Steps) -> None:
    """Play the steps, end all faults, and wait until the cluster is synced."""
    for step in steps:
        history.act(*step)
    history.end_well()


def check_that_all_agree(history: History) -> None:
    states = {peer.content.state() for peer in history.cluster.peers.values()}
    assert len(states) == 1


def check_that_members_of_a_round_applied_the_same(history: History) -> None:
    """Members synced in one round that left it by the same view have applied the same changes."""
    together: dict[object, set[object]] = {}
    for peer in history.ever:
        for segment in peer.segments:
            key = (segment.epoch, segment.next_view)
            together.setdefault(key, set()).add(segment.applied)
    assert all(len(sequences) == 1 for sequences in together.values())


def check_that_no_change_waits(history: History) -> None:
    living = history.cluster.peers.values()
    waiting = [wish for peer, wish in history.wishes if peer in living and wish.outcome == "waits"]
    unanswered = [w for peer, w in history.wishes if peer in living and w.outcome == "sent"]
    assert (waiting, unanswered) == ([], [])


def check_that_no_change_was_applied_twice(history: History) -> None:
    by_node: Counter[tuple[int, Member, int]] = Counter()
    for peer in history.ever:
        by_node.update((peer.member.nodeid, *change) for change in peer.ever_applied)
    assert not [change for change, count in by_node.items() if count > 1]


def check_that_only_forks_lose_changes(history: History) -> None:
    """If each version of the tree was made by one change, all these changes are in the tree."""
    makers: dict[int, set[tuple[Member, int]]] = {}
    for peer in history.ever:
        for version, change in peer.versions:
            makers.setdefault(version, set()).add(change)
    if all(len(changes) == 1 for changes in makers.values()):
        made = set[tuple[Member, int]]().union(*makers.values())
        check_that_directories_exist(history, made)


def check_that_changes_of_a_majority_are_kept(history: History) -> None:
    """A change that more than half of the nodes have applied is never lost.

    The protocol promises this only if no node applies a message that the others do not receive:
    CPG_TYPE_AGREED does not exclude that. If such a node returns, its tree can have the same
    version as the tree of the majority and win.
    """
    appliers: dict[tuple[Member, int], set[int]] = {}
    for peer in history.ever:
        for change in peer.ever_applied:
            appliers.setdefault(change, set()).add(peer.member.nodeid)
    size = history.cluster.size
    check_that_directories_exist(history, {c for c, by in appliers.items() if len(by) * 2 > size})


def check_that_directories_exist(history: History, changes: set[tuple[Member, int]]) -> None:
    content = history.cluster.contents[1]
    assert isinstance(content, TreeContent)
    for peer, wish in history.wishes:
        if isinstance(wish.body, Mkdir) and (peer.member, wish.serial) in changes:
            assert content.tree.find(wish.body.path) is not None, f"{wish} is lost"


def check_everything(history: History) -> None:
    check_that_all_agree(history)
    check_that_members_of_a_round_applied_the_same(history)
    check_that_no_change_waits(history)
    check_that_no_change_was_applied_twice(history)
    check_that_only_forks_lose_changes(history)
    if not (history.is_wild or history.loses_tails):
        check_that_changes_of_a_majority_are_kept(history)


@settings(max_examples=40)
@given(histories, st.integers(2, 5))
def test_after_any_faults_all_nodes_end_synced_with_one_tree(steps: Steps, size: int) -> None:
    history = History(size, loses_tails=False)
    play(history, steps)
    check_everything(history)


@settings(max_examples=40)
@given(histories, st.integers(2, 5))
def test_all_nodes_end_synced_if_parts_of_a_ring_receive_different_messages(
    steps: Steps, size: int
) -> None:
    history = History(size, loses_tails=True)
    play(history, steps)
    check_everything(history)


@settings(max_examples=40)
@given(histories, st.integers(2, 5))
def test_all_nodes_end_synced_after_every_part_went_on_as_if_quorate(
    steps: Steps, size: int
) -> None:
    history = History(size, loses_tails=False, is_wild=True)
    play(history, steps)
    check_everything(history)


@settings(max_examples=20)
@given(histories, st.integers(2, 4), st.booleans())
def test_after_any_faults_all_nodes_end_synced_with_one_status(
    steps: Steps, size: int, loses_tails: bool
) -> None:
    history = History(size, group=Group.STATUS, loses_tails=loses_tails)
    play(history, steps)
    check_that_all_agree(history)
    check_that_members_of_a_round_applied_the_same(history)
    check_that_no_change_waits(history)


@pytest.mark.long
@settings(max_examples=10000)
@given(histories, st.integers(2, 5), st.booleans(), st.booleans())
def test_many_long_histories_of_every_kind(
    steps: Steps, size: int, loses_tails: bool, is_wild: bool
) -> None:
    history = History(size, loses_tails=loses_tails, is_wild=is_wild)
    play(history, steps)
    check_everything(history)
