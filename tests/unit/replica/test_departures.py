"""The notes of other nodes: what each of them may miss of our changes."""

import pytest

from pmxcfs.replica.departures import SETTLING, Departures, room_for
from pmxcfs.storage.divergence import ENDING, OTHERS, Note, Removal

ME, NODES = 1, (1, 2, 3)
ROOM = 10.0


class Node:
    """The departures of node 1 of three, with a clock and the version of its tree."""

    def __init__(self, notes: dict[int, Note] | None = None) -> None:
        self.departures = Departures(notes or {})
        self.now = 1000.0
        self.version = 50

    def meet(self, *others: int) -> None:
        """See a membership with *others*, and the end of the synchronization."""
        self.departures.follow({ME, *others}, me=ME, version=self.version, now=self.now)
        self.departures.remember(self.version, now=self.now)

    def leave(self) -> None:
        self.departures.follow((), me=ME, version=self.version, now=self.now)

    def work(self, seconds: int, *, changes: int = 1) -> None:
        """Let time pass, with so many changes a second."""
        for _ in range(seconds):
            self.now += 1
            if changes and self.departures.is_due:
                self.departures.note_absent(self.version)
            self.version += changes
            self.departures.remember(self.version, now=self.now)

    def remove(self, inode: int) -> None:
        if self.departures.is_due:
            self.departures.note_absent(self.version)
        self.version += 1
        self.departures.remove(inode, b"x", version=self.version)

    def settle(self) -> None:
        self.departures.settle(is_common=True, now=self.now)
        self.now += SETTLING
        self.departures.settle(is_common=True, now=self.now)

    @property
    def notes(self) -> dict[int, Note]:
        return self.departures.notes


@pytest.fixture
def node() -> Node:
    """A node in sync with two others."""
    node = Node()
    node.departures.set_nodes(NODES, room=ROOM)
    node.meet(2, 3)
    node.settle()
    return node


def test_nodes_in_sync_have_no_notes(node: Node) -> None:
    node.work(100)
    assert node.notes == {}
    assert node.departures.is_saved


def test_a_departed_node_is_known_to_have_what_is_as_old_as_the_room(node: Node) -> None:
    node.work(100)
    node.meet(2)
    assert node.notes == {3: Note(140, 150)}
    assert not node.departures.is_saved


def test_changes_since_a_departure_do_not_move_the_note(node: Node) -> None:
    node.work(100)
    node.meet(2)
    node.work(100)
    node.meet(2)
    assert node.notes == {3: Note(140, 150)}


def test_a_node_that_departs_soon_is_known_to_have_the_tree_of_the_synchronization(
    node: Node,
) -> None:
    node.leave()
    node.version = 70
    node.meet(2, 3)
    node.work(3, changes=10)
    node.meet(2)
    assert node.notes == {3: Note(70, 100)}


def test_without_changes_in_the_room_a_departed_node_has_all(node: Node) -> None:
    node.work(5)
    node.work(20, changes=0)
    node.meet(2)
    assert node.notes == {3: Note(55, 55)}


def test_a_version_is_remembered_until_a_newer_one_is_as_old_as_the_room(node: Node) -> None:
    node.work(1)
    node.work(100, changes=0)
    node.work(2)
    node.meet(2)
    assert node.notes == {3: Note(51, 53)}


def test_a_node_that_leaves_the_group_itself_makes_no_note_before_a_change(node: Node) -> None:
    """After a leave, the others have got all that this node has."""
    node.work(100)
    node.leave()
    node.meet()
    assert node.notes == {}
    node.work(1)
    assert node.notes == {2: Note(150, 150), 3: Note(150, 150)}


def test_a_change_alone_after_a_restart_makes_notes(node: Node) -> None:
    restarted = Node()
    restarted.departures.set_nodes(NODES)
    assert restarted.departures.is_due
    restarted.meet()
    restarted.work(1)
    assert restarted.notes == {2: Note(50, 50), 3: Note(50, 50)}


def test_notes_are_kept_over_restarts(node: Node) -> None:
    restarted = Node({3: Note(40, 45)})
    restarted.departures.set_nodes(NODES)
    restarted.meet(2)
    restarted.work(10)
    assert restarted.notes == {3: Note(40, 45)}
    assert restarted.departures.is_saved


def test_a_note_is_dropped_when_the_node_has_stayed_for_a_while(node: Node) -> None:
    node.work(100)
    node.meet(2)
    node.work(10)
    node.meet(2, 3)
    node.departures.settle(is_common=False, now=node.now)  # it gets its UPDATEs
    node.departures.settle(is_common=True, now=node.now + 5)
    node.departures.settle(is_common=True, now=node.now + 5 + SETTLING - 1)
    assert node.notes == {3: Note(140, ENDING)}
    node.departures.is_saved = True
    node.departures.settle(is_common=True, now=node.now + 5 + SETTLING)
    assert node.notes == {}
    assert not node.departures.is_saved


def test_a_node_that_leaves_because_it_could_not_commit_keeps_its_note(node: Node) -> None:
    node.work(100)
    node.meet(2)
    node.work(10)
    node.meet(2, 3)
    node.departures.settle(is_common=True, now=node.now)
    node.work(5)
    node.meet(2)
    assert node.notes == {3: Note(140, 150)}


def test_a_node_that_is_rebooted_right_after_another_one_has_no_note_of_it(node: Node) -> None:
    node.work(100)
    node.meet(2)
    node.meet(2, 3)
    node.departures.settle(is_common=True, now=node.now)
    assert not node.departures.is_saved
    rebooted = Node(node.notes)
    assert rebooted.notes == {}
    assert not rebooted.departures.is_saved
    node.leave()
    assert node.notes == {}


def test_a_node_that_ends_before_another_one_has_all_updates_keeps_its_note(node: Node) -> None:
    node.work(100)
    node.meet(2)
    node.meet(2, 3)
    node.departures.settle(is_common=True, now=node.now)
    node.departures.settle(is_common=False, now=node.now)  # somebody else gets UPDATEs
    assert Node(node.notes).notes == {3: Note(140, 150)}
    node.leave()
    assert node.notes == {3: Note(140, 150)}


def test_notes_of_nodes_that_left_the_configuration_are_dropped(node: Node) -> None:
    node.work(100)
    node.meet()
    assert set(node.notes) == {2, 3}
    node.departures.set_nodes((1, 2))
    assert set(node.notes) == {2}


def test_a_node_makes_no_note_of_itself() -> None:
    copied = Node({1: Note(40, 40), 3: Note(40, 40)})
    copied.departures.set_nodes(NODES)
    copied.meet(2, 3)
    assert copied.notes == {3: Note(40, 40)}


# While the other nodes are not known


def test_a_change_while_no_other_node_is_known_makes_a_note_of_all() -> None:
    node = Node()
    node.work(3)
    assert node.notes == {OTHERS: Note(50, 50)}


def test_the_note_of_all_becomes_one_of_each_node_as_soon_as_they_are_known() -> None:
    node = Node({OTHERS: Note(40, 40), 3: Note(30, 35)})
    node.meet(2)
    node.departures.set_nodes(NODES)
    assert node.notes == {2: Note(40, 40), 3: Note(30, 35)}


def test_the_note_of_all_does_not_count_for_nodes_that_have_the_tree() -> None:
    node = Node({OTHERS: Note(40, 40)})
    node.meet(2)
    node.settle()
    node.departures.set_nodes(NODES)
    assert node.notes == {3: Note(40, 40)}


def test_the_note_of_all_is_that_of_a_node_that_departs() -> None:
    node = Node({OTHERS: Note(40, 40)})
    node.meet(2)
    node.work(5)
    node.meet()
    node.departures.set_nodes(NODES)
    assert node.notes == {2: Note(40, 40), 3: Note(40, 40)}


def test_a_node_that_is_in_no_cluster_makes_no_notes() -> None:
    node = Node()
    node.departures.set_nodes(())
    node.work(3)
    assert node.notes == {}


# Adoptions


def test_the_note_of_a_side_is_its_oldest() -> None:
    node = Node({2: Note(40, 45), 3: Note(30, 35)})
    node.departures.set_nodes(NODES)
    assert node.departures.begin_adoption(50, side={2, 3}) == Note(30, 35)
    assert node.departures.begin_adoption(50, side={2}) == Note(40, 45)


def test_a_side_without_notes_has_no_note(node: Node) -> None:
    assert node.departures.begin_adoption(50, side={2, 3}) is None
    assert node.notes == {}


def test_a_node_outside_the_leaders_side_is_known_to_have_our_tree_before(node: Node) -> None:
    """Also if it is a member: it may fail to adopt the leader's tree."""
    node.departures.begin_adoption(50, side={2})
    node.departures.adopted(side={2}, fork=None)
    node.version = 90
    node.meet(2)
    assert node.notes == {3: Note(50, 50)}


def test_a_node_whose_tree_is_adopted_has_all_of_it(node: Node) -> None:
    """Also if this node stops before the others have settled."""
    node.work(100)
    node.meet()
    node.meet(2, 3)
    assert node.notes == {2: Note(140, 150), 3: Note(140, 150)}
    node.departures.begin_adoption(150, side={2})
    node.departures.adopted(side={2}, fork=None)
    assert node.notes == {3: Note(140, 150)}


def test_a_node_whose_state_was_ours_has_our_tree(node: Node) -> None:
    node.work(100)
    node.meet()
    node.meet(2, 3)
    node.departures.agree({ME, 2})
    assert node.notes == {3: Note(140, 150)}


def test_an_adoption_before_the_nodes_are_known_makes_notes_of_all_others() -> None:
    """As by a node that starts and is in the group before it has read the configuration."""
    node = Node()
    node.meet(2)
    node.departures.begin_adoption(50, side={2})
    node.departures.adopted(side={2}, fork=None)
    node.departures.set_nodes(NODES)
    assert node.notes == {3: Note(50, 50)}


def test_a_fork_lowers_the_notes_of_absent_nodes(node: Node) -> None:
    node.work(100)
    node.meet(2)
    node.departures.begin_adoption(150, side={2})
    node.departures.adopted(side={2}, fork=130)
    assert node.notes == {3: Note(130, 130)}
    node.departures.adopted(side={2}, fork=140)
    assert node.notes == {3: Note(130, 130)}


def test_versions_before_an_adoption_are_forgotten(node: Node) -> None:
    node.work(100)
    node.departures.begin_adoption(150, side={2, 3})
    node.departures.adopted(side={2, 3}, fork=None)
    node.version = 120
    node.meet(2, 3)
    node.now += 1
    node.meet(2)
    assert node.notes == {3: Note(120, 120)}


# The room


@pytest.mark.parametrize(
    ("token", "consensus", "nodes", "seconds"),
    [
        (1000, 1200, 3, 3.2),
        (None, None, 2, 7.6),
        (None, None, 3, 9.03),
        (None, None, 32, 50.5),
        (10000, None, 16, 23.0),
    ],
)
def test_the_room_follows_from_corosyncs_timeouts(
    token: int | None, consensus: int | None, nodes: int, seconds: float
) -> None:
    assert room_for(token, consensus, nodes=nodes) == pytest.approx(seconds)


# Removals


def test_the_removals_of_the_room_before_a_departure_are_noted(node: Node) -> None:
    node.remove(7)
    node.work(int(ROOM) + 1)
    node.remove(8)
    node.remove(9)
    assert node.departures.removals == []
    node.meet(2)
    assert node.notes == {3: Note(52, 64)}
    assert node.departures.removals == [Removal(8, 63, b"x"), Removal(9, 64, b"x")]
    assert not node.departures.is_saved


def test_removals_are_remembered_for_as_long_as_the_room(node: Node) -> None:
    """A node may depart soon after another one."""
    node.remove(7)
    node.meet(2)
    node.departures.removals = []
    node.meet()
    assert node.departures.removals == [Removal(7, 51, b"x")]


def test_the_others_have_the_removals_that_were_delivered_before_we_left(node: Node) -> None:
    node.remove(7)
    node.leave()
    node.meet(2)
    assert node.departures.removals == []


def test_a_removal_while_a_node_is_absent_is_noted_if_the_node_may_have_the_entry(
    node: Node,
) -> None:
    node.meet(2)
    node.remove(50)
    node.remove(51)
    assert node.departures.removals == [Removal(50, 51, b"x")]


def test_what_was_made_after_a_note_is_known_to_a_node_that_departs_again(node: Node) -> None:
    """Its note is of the first departure, as it has not stayed for long enough."""
    node.meet(2)
    node.work(5)
    node.meet(2, 3)
    node.work(5)
    node.meet(2)
    assert node.notes[3].parted == 50
    node.remove(60)
    assert node.departures.removals == [Removal(60, 61, b"x")]


def test_a_node_in_no_group_remembers_no_removals() -> None:
    node = Node()
    node.departures.set_nodes([])
    node.remove(7)
    node.meet(2)
    node.meet()
    assert node.departures.removals == []
