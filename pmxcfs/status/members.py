"""The nodes of the cluster: its configuration, the nodes that are online, and their keys.

The state of a node is stored in its ``Peer``, which is removed when the node's entry disappears
from the cluster's configuration. Callers hold the tree's lock.
Contract: docs/spec/status.md, ".members" and "Key/value store".
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pmxcfs.errors import NoSpace
from pmxcfs.messages import ClusterConfig, Member
from pmxcfs.text import to_bytes

MAX_UNCONFIGURED = 64  # sending nodes that have no entry in the configuration yet
MAX_KEYS_SIZE = 4 << 20  # bytes for the keys of one node; about 10 KiB are usual
KEY_OVERHEAD = 256  # bytes per key beside its name and value


@dataclass(slots=True)
class Value:
    """The value of a key, and how often it was changed since the key was set first."""

    content: bytes
    version: int = 0


class Keys:
    """The keys of one node."""

    def __init__(self) -> None:
        self.values: dict[str, Value] = {}
        self.is_used = False  # whether a key was ever set
        self._size = 0

    def put(self, key: str, content: bytes) -> None:
        """Set *key*. Raises NoSpace if all keys together would be too large."""
        known = self.values.get(key)
        added = len(content) - len(known.content) if known else _cost(key) + len(content)
        if self._size + added > MAX_KEYS_SIZE:
            raise NoSpace(f"the keys of a node may together take at most {MAX_KEYS_SIZE} bytes")
        self._size += added
        self.is_used = True
        if known:
            known.content = content
            known.version += 1
        else:
            self.values[key] = Value(content)

    def remove(self, key: str) -> bool:
        """Remove *key*; return False if it is not set."""
        known = self.values.pop(key, None)
        if known is None:
            return False
        self._size -= _cost(key) + len(known.content)
        return True


def _cost(key: str) -> int:
    return KEY_OVERHEAD + len(to_bytes(key))


class Peer:
    """The state of one node."""

    def __init__(self, name: str) -> None:
        self.name = name  # empty while the node has no entry in the configuration
        self.address = ""  # IP address; empty while unknown
        self.keys = Keys()


class Members:
    """The cluster's configuration, and the state of its nodes."""

    def __init__(self, node: str) -> None:
        self.own = Peer(node)
        self.config: ClusterConfig | None = None  # None in local mode, and until it is received
        self.quorate = False
        self.clinfo = 1  # incremented when nodes, members or addresses change
        self.revision = 0  # changes with the content of ``.members``
        self._present: frozenset[Member] = frozenset()
        self._peers: dict[int, Peer] = {}  # by nodeid, without this node

    @property
    def online(self) -> frozenset[int]:
        """The ids of the nodes that are in the status group."""
        return frozenset(member.nodeid for member in self._present)

    def offline(self) -> list[str]:
        """Return the names of the other configured nodes that are not in the status group."""
        nodes = self.config.nodes if self.config else ()
        present = self.online
        return [
            node.name for node in nodes if node.nodeid not in present and node.name != self.own.name
        ]

    @property
    def is_unlisted(self) -> bool:
        """Whether a configuration is known that has no node of this node's name."""
        nodes = self.config.nodes if self.config else ()
        return bool(nodes) and all(node.name != self.own.name for node in nodes)

    def configure(self, config: ClusterConfig) -> None:
        """Set the cluster's configuration; remove the state of nodes that are not in it."""
        if config == self.config:
            return
        self.config = config
        names = {node.nodeid: node.name for node in config.nodes if node.name != self.own.name}
        self._peers = {
            nodeid: peer
            for nodeid, peer in self._peers.items()
            if nodeid in names and peer.name in ("", names[nodeid])
        }
        for nodeid, peer in self._peers.items():
            peer.name = names[nodeid]
        self._count()

    def set_present(self, members: Iterable[Member]) -> None:
        """Set the current members of the status group."""
        present = frozenset(members)
        if present != self._present:
            self._present = present
            self._count()

    def set_quorate(self, quorate: bool) -> None:
        """Set whether this node is part of a quorate cluster."""
        if quorate != self.quorate:
            self.quorate = quorate
            self.revision += 1

    def set_address(self, peer: Peer, address: str) -> None:
        """Set the IP address of *peer*."""
        if address != peer.address:
            peer.address = address
            self._count()

    def set_resolved(self, address: str) -> None:
        """Set the address that this node's name resolves to, unless an address is set already."""
        if not self.own.address:
            self.set_address(self.own, address)

    def _count(self) -> None:
        self.clinfo += 1
        self.revision += 1

    def sender(self, nodeid: int) -> Peer | None:
        """Return the sender of a message from node *nodeid*.

        A node can send before its entry in the configuration is known here; the name of the peer is
        empty then. Return None if there are too many such nodes.
        """
        name = self._name_of(nodeid)
        if name == self.own.name:
            return self.own
        peer = self._peers.get(nodeid)
        if peer is None and (name or self._unconfigured() < MAX_UNCONFIGURED):
            peer = self._peers[nodeid] = Peer(name)
        return peer

    def _name_of(self, nodeid: int) -> str:
        nodes = self.config.nodes if self.config else ()
        return next((node.name for node in nodes if node.nodeid == nodeid), "")

    def _unconfigured(self) -> int:
        return sum(not peer.name for peer in self._peers.values())

    def named(self, name: str) -> Peer | None:
        """Return the node *name*: this node, or a configured one that has sent a message."""
        return next((peer for peer in self if peer.name == name), None)

    def __iter__(self) -> Iterator[Peer]:
        """Yield this node, then by id the configured nodes that have sent a message."""
        yield self.own
        yield from (peer for _, peer in sorted(self._peers.items()) if peer.name)

    def addresses(self) -> Mapping[str, str]:
        """Return node name -> IP address, for the nodes whose address is known."""
        return {peer.name: peer.address for peer in self if peer.address}
