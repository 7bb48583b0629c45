"""A CPG process group in memory: total order of messages and membership changes.

The bus keeps the promises of libcpg for CPG_TYPE_AGREED (extended virtual synchrony). All nodes
that can reach one another form a *ring*, which has one order of messages and membership views. When
a ring breaks, each part of it has received all messages up to some place in that order, and after
this place only the messages of its own nodes. Nothing happens by itself: the caller orders the next
message of a node (``order``), changes which nodes reach one another (``reconfigure``), and reads
deliveries from a ``Port``.

Quorum changes are events in the same order: the loss of quorum comes before the view that causes
it, the gain of quorum after. A message that only a part of a ring has received is delivered with
the quorum of that part. Corosync counts nodes; with *counts_members* the bus counts nodes whose
daemon is in the group.
"""

import itertools
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from pmxcfs.messages import Member, Message


class Delivery(NamedTuple):
    """A delivered message."""

    sender: Member
    message: Message


class View(NamedTuple):
    """A membership change. Members that see the same *number* have seen the same history."""

    number: int
    members: tuple[Member, ...]
    joined: tuple[Member, ...]


class Quorum(NamedTuple):
    """A quorum change: whether the node has a majority from here on."""

    is_there: bool


class Foreign(NamedTuple):
    """A message of another protocol version."""

    sender: Member
    is_newer: bool


class Departure(NamedTuple):
    """The last event of a member: it leaves, or its process has died."""


class Arrival(NamedTuple):
    """The first event of a member: it joins."""


Event = Delivery | View | Quorum | Foreign
Sent = Message | Foreign | Departure | Arrival
Cut = Callable[[int, int], int]  # from the lowest and highest possible place to the one chosen


class _Ring:
    """Nodes that can reach one another."""

    def __init__(self, nodes: Collection[int], members: Iterable[Member]) -> None:
        self.nodes = frozenset(nodes)
        self.members = sorted(members)
        self.length = 0  # events ordered so far
        self.last_view = 0  # the place after the last view


class Port:
    """One member's connection."""

    def __init__(self, member: Member, ring: _Ring) -> None:
        self.member = member
        self.ring = ring
        self.queue: deque[Sent] = deque([Arrival()])  # accepted for sending, not ordered yet
        self.inbox: deque[tuple[int, Event]] = (
            deque()
        )  # delivered and not read, each with its place in the ring
        self.seen = 0  # the place in the present ring after the last event that was read

    def read(self) -> Event:
        """Take the next event."""
        place, event = self.inbox.popleft()
        self.seen = max(self.seen, place + 1)
        return event


def all_received(_lowest: int, highest: int) -> int:
    """Choose a cut at which each part of the ring has received all messages."""
    return highest


class Bus:
    """The rings of all nodes and the ports of all members."""

    def __init__(self, nodes: Collection[int], *, counts_members: bool = False) -> None:
        self.votes = len(nodes)  # in total
        self._counts_members = counts_members
        self.ports: dict[int, Port] = {}  # by node
        self._rings: dict[int, _Ring] = {}  # by node
        self._views = 0
        for node in nodes:
            self._rings[node] = _Ring([node], [])
        self.reconfigure([nodes])

    def connect(self, member: Member) -> Port:
        """Open a port for *member*; it joins once its arrival is ordered."""
        assert member.nodeid not in self.ports
        port = Port(member, self._rings[member.nodeid])
        self.ports[member.nodeid] = port
        return port

    def order(self, node: int) -> None:
        """Order the next message that *node* has sent."""
        port = self.ports[node]
        ring, sent = port.ring, port.queue.popleft()
        if isinstance(sent, Arrival):
            self._arrive(port)
        elif isinstance(sent, Departure):
            ring.members.remove(port.member)
            self._announce(ring, [], extra=port)
            del self.ports[node]
        elif isinstance(sent, Foreign):
            self._append(ring, sent)
        else:
            self._append(ring, Delivery(port.member, sent))

    def cut_off(self, node: int, *, cut: Cut = all_received) -> None:
        """Cut the power of *node*: it is gone, with the messages that it has not sent."""
        rest = {frozenset(ring.nodes - {node}) for ring in self._rings.values()}
        self.reconfigure([*filter(None, rest), [node]], cut=cut)
        port = self.ports.pop(node, None)
        if port is not None and port.member in port.ring.members:
            port.ring.members.remove(port.member)

    def see_again(self, nodes: Collection[int]) -> None:
        """Let only *nodes* see a membership change, as when they alone knew of a dead daemon.

        libcpg promises one history of views to all; corosync does not always keep it.
        """
        self._views += 1
        for port in self._ports_in(nodes):
            ring = port.ring
            port.inbox.append((ring.length, View(self._views, tuple(ring.members), ())))

    def reconfigure(
        self, parts: Iterable[Iterable[int]], *, cut: Cut = all_received, one_by_one: bool = False
    ) -> None:
        """Let the nodes of each of *parts* reach one another and no other nodes.

        With *one_by_one* each member that joins has a view of its own; otherwise one view has all.
        """
        for nodes in map(frozenset, parts):
            old = {self._rings[node] for node in nodes}
            if len(old) > 1 or old.pop().nodes != nodes:
                self._form(nodes, cut, one_by_one=one_by_one)

    def _form(self, nodes: frozenset[int], cut: Cut, *, one_by_one: bool) -> None:
        olds = sorted({self._rings[node] for node in nodes}, key=lambda ring: min(ring.nodes))
        stayed = {ring: _members_in(ring, nodes) for ring in olds}
        ring = _Ring(nodes, itertools.chain(*stayed.values()))
        for old, members in stayed.items():
            part = old.nodes & nodes
            quorum = self._quorum(members, part)
            events = self._events_of_part(old, members, ring, one_by_one=one_by_one)
            place = (
                old.length if old.nodes <= nodes else cut(_lowest_cut(self, old, nodes), old.length)
            )
            for port in self._ports_in(part):
                _break_off(port, place, nodes, quorum)
                if port.member in members:
                    port.inbox.extend((-1, event) for event in events)
                port.ring, port.seen = ring, 0
        self._rings.update(dict.fromkeys(nodes, ring))

    def _events_of_part(
        self, old: _Ring, members: list[Member], ring: _Ring, *, one_by_one: bool
    ) -> list[Event]:
        events: list[Event] = []
        if members != old.members:
            events += self._change(members, (), old.nodes & ring.nodes)
        joined = [member for member in ring.members if member not in members]
        steps = [[member] for member in joined] if one_by_one else [joined] if joined else []
        for step in steps:
            members = sorted([*members, *step])
            events += self._change(members, step, ring.nodes)
        return events or [self._quorum(members, ring.nodes)]

    def _arrive(self, port: Port) -> None:
        ring = port.ring
        ring.members = sorted([*ring.members, port.member])
        self._announce(ring, [port.member])

    def _quorum(self, members: Collection[Member], nodes: Collection[int]) -> Quorum:
        votes = len(members if self._counts_members else nodes)
        return Quorum(votes * 2 > self.votes)

    def _change(
        self, members: Sequence[Member], joined: Sequence[Member], nodes: Collection[int]
    ) -> list[Event]:
        """Return the events of a membership change: the view, and the quorum before or after it."""
        self._views += 1
        view = View(self._views, tuple(members), tuple(joined))
        quorum = self._quorum(members, nodes)
        return [view, quorum] if quorum.is_there else [quorum, view]

    def _announce(self, ring: _Ring, joined: list[Member], *, extra: Port | None = None) -> None:
        for event in self._change(ring.members, joined, ring.nodes):
            self._append(ring, event, extra=extra)
        ring.last_view = ring.length

    def _append(self, ring: _Ring, event: Event, *, extra: Port | None = None) -> None:
        for port in self._ports_in(ring.nodes):
            if port.member in ring.members or port is extra:
                port.inbox.append((ring.length, event))
        ring.length += 1

    def _ports_in(self, nodes: Collection[int]) -> list[Port]:
        return [port for node, port in self.ports.items() if node in nodes]


def _members_in(ring: _Ring, nodes: Collection[int]) -> list[Member]:
    return [member for member in ring.members if member.nodeid in nodes]


def _lowest_cut(bus: Bus, ring: _Ring, nodes: frozenset[int]) -> int:
    """Return the first possible place of a cut: behind what a node of the part has read."""
    seen = [port.seen for node, port in bus.ports.items() if node in nodes & ring.nodes]
    return max([ring.last_view, *seen])


def _break_off(port: Port, place: int, nodes: Collection[int], quorum: Quorum) -> None:
    """Drop the events from *place* on that other nodes sent; insert the new quorum there."""
    before = [item for item in port.inbox if item[0] < place]
    tail = [event for at, event in port.inbox if at >= place and _is_from(event, nodes)]
    port.inbox = deque((-1, event) for event in [*_events(before), quorum, *tail])


def _events(items: Iterable[tuple[int, Event]]) -> list[Event]:
    return [event for _, event in items]


def _is_from(event: Event, nodes: Collection[int]) -> bool:
    assert isinstance(event, Delivery | Foreign)
    return event.sender.nodeid in nodes
