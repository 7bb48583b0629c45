"""Several nodes in memory on one bus, with starts, crashes, splits and the passing of time."""

from collections.abc import Callable, Iterable, Sequence

from pmxcfs.dfsm.timeouts import Deadlines, Moment
from pmxcfs.messages import Group, Member
from tests.fakes.simulation.bus import Bus, Cut, Departure, all_received
from tests.fakes.simulation.peer import Peer, StatusContent, TreeContent

START = 1_800_000_000  # the wall clock of a new cluster, in seconds


class Cluster:
    """The nodes with the ids in *nodes*. At first all can reach one another and none runs."""

    def __init__(
        self,
        nodes: Sequence[int],
        *,
        group: Group = Group.TREE,
        deadlines: Deadlines | None = None,
        counts_members: bool = False,
        tell: Callable[[int, str], None] = lambda node, text: None,
    ) -> None:
        self.nodes = tuple(nodes)
        self.size = len(nodes)
        self.bus = Bus(self.nodes, counts_members=counts_members)
        self.now = Moment(START, 0.0)
        self.peers: dict[int, Peer] = {}  # by node, those whose process runs
        self.frozen: set[int] = set()
        self.held: set[int] = set()  # nodes whose messages are not ordered
        self._deadlines = deadlines
        self._tell = tell
        self._starts = 0
        self.contents: dict[int, TreeContent | StatusContent] = {
            node: TreeContent() if group is Group.TREE else StatusContent() for node in self.nodes
        }

    # Faults.

    def start(self, node: int) -> None:
        """Start a process on *node* with the content of its database."""
        self._starts += 1
        content = self.contents[node]
        if isinstance(content, TreeContent):
            content = self.contents[node] = TreeContent(content.tree)
        self.peers[node] = Peer(
            self.bus,
            Member(node, (self.nodes.index(node) + 1) * 100 + self._starts),
            content,
            now=self.now,
            deadlines=self._deadlines,
            tell=lambda text: self._tell(node, text),
        )

    def kill(self, node: int) -> None:
        """Kill the process on *node*; corosync still sends the messages that it has accepted."""
        port = self.peers.pop(node).port
        self.frozen.discard(node)
        if port is not None and not any(isinstance(sent, Departure) for sent in port.queue):
            port.queue.append(Departure())

    def crash(self, node: int, *, cut: Cut = all_received) -> None:
        """Cut the power of *node*."""
        del self.peers[node]
        self.frozen.discard(node)
        self.bus.cut_off(node, cut=cut)

    def split(
        self, parts: Iterable[Iterable[int]], *, cut: Cut = all_received, one_by_one: bool = False
    ) -> None:
        """Let the nodes of each part reach one another and no other nodes."""
        self.bus.reconfigure(parts, cut=cut, one_by_one=one_by_one)

    def heal(self, *, one_by_one: bool = False) -> None:
        """Let all nodes reach one another."""
        self.split([self.nodes], one_by_one=one_by_one)

    # Running.

    def step(self, node: int) -> bool:
        """Let the process on *node* handle one event and send; tell whether it did either."""
        peer = self.peers.get(node)
        if peer is None or node in self.frozen:
            return False
        had_event = peer.has_event
        if had_event:
            peer.handle()
        return peer.pump() or had_event

    def order(self, node: int) -> bool:
        """Order the next message of *node*; tell whether there was one."""
        port = self.bus.ports.get(node)
        if port is None or not port.queue or node in self.held:
            return False
        self.bus.order(node)
        return True

    def run(self) -> None:
        """Handle and order events, node by node, until none is left."""
        while any([*map(self.step, self.nodes), *map(self.order, self.nodes)]):
            pass

    def tick(self, seconds: int) -> None:
        """Let time pass in steps of one second."""
        for _ in range(seconds):
            self.now = Moment(self.now.wall + 1, self.now.monotonic + 1)
            for node, peer in self.peers.items():
                if node not in self.frozen:
                    peer.tick(self.now)
            self.run()
