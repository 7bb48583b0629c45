"""Who belongs to the cluster, who is there, and what is known of each node.

All that is kept of a node hangs on its ``Peer``, which lives as long as its entry in the cluster's
configuration, so nothing of a node can outlast it. Used with the tree's lock held. Contract: docs/spec/status.md, ".members" and "Key/value store".
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pmxcfs.errors import NoSpace
from pmxcfs.messages import ClusterConfig, Member
from pmxcfs.text import to_bytes

MAX_STRANGERS = 64  # nodes that may be heard before their entry in the configuration is
MAX_KEYS_SIZE = 4 << 20  # bytes that the keys of one node may take; usual are some 10 KiB
KEY_OVERHEAD = 256  # bytes that a key costs beside its name and value


@dataclass(slots=True)
class Value:
    """The value of a key, and how often it changed since it is there."""

    content: bytes
    version: int = 0


class Keys:
    """The keys of one node."""

    def __init__(self) -> None:
        self.values: dict[str, Value] = {}
        self.is_used = False  # it has had some, perhaps none any more
        self._size = 0

    def put(self, key: str, content: bytes) -> None:
        """Set *key*. Raises NoSpace if all keys would take too much."""
        known = self.values.get(key)
        added = len(content) - len(known.content) if known else _cost(key) + len(content)
        if self._size + added > MAX_KEYS_SIZE:
            raise NoSpace(f"the keys of a node may take {MAX_KEYS_SIZE} bytes")
        self._size += added
        self.is_used = True
        if known:
            known.content = content
            known.version += 1
        else:
            self.values[key] = Value(content)

    def remove(self, key: str) -> bool:
        """Remove *key*; return False if there is none."""
        known = self.values.pop(key, None)
        if known is None:
            return False
        self._size -= _cost(key) + len(known.content)
        return True


def _cost(key: str) -> int:
    return KEY_OVERHEAD + len(to_bytes(key))


class Peer:
    """What a node told about itself."""

    def __init__(self, name: str) -> None:
        self.name = name  # empty while the configuration has no such node
        self.address = ""  # how others reach it, empty while unknown
        self.keys = Keys()


class Members:
    """The cluster's configuration, and which of its nodes are there."""

    def __init__(self, node: str) -> None:
        self.own = Peer(node)
        self.config: ClusterConfig | None = None  # None in local mode, and until it is known
        self.quorate = False
        self.clinfo = 1  # counts changes of members and their addresses
        self.revision = 0  # changes whenever ``.members`` does
        self._present: frozenset[Member] = frozenset()
        self._peers: dict[int, Peer] = {}  # by node id, without our own

    @property
    def online(self) -> frozenset[int]:
        """The ids of the nodes that are in the status group."""
        return frozenset(member.nodeid for member in self._present)

    def configure(self, config: ClusterConfig) -> None:
        """Take the cluster's configuration, which may be the same as before."""
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
        """Take who is in the status group now."""
        present = frozenset(members)
        if present != self._present:
            self._present = present
            self._count()

    def set_quorate(self, quorate: bool) -> None:
        """Take whether this node sees a majority."""
        if quorate != self.quorate:
            self.quorate = quorate
            self.revision += 1

    def set_address(self, peer: Peer, address: str) -> None:
        """Take how *peer* is reached."""
        if address != peer.address:
            peer.address = address
            self._count()

    def set_resolved(self, address: str) -> None:
        """Take what our own name resolves to, which counts until somebody sets an address."""
        if not self.own.address:
            self.set_address(self.own, address)

    def _count(self) -> None:
        self.clinfo += 1
        self.revision += 1

    def sender(self, nodeid: int) -> Peer | None:
        """Return whom a message is from; None if that is one stranger too many.

        A node can be in the group before we hear of its entry in the configuration.
        """
        name = self._name_of(nodeid)
        if name == self.own.name:
            return self.own
        peer = self._peers.get(nodeid)
        if peer is None and (name or self._strangers() < MAX_STRANGERS):
            peer = self._peers[nodeid] = Peer(name)
        return peer

    def _name_of(self, nodeid: int) -> str:
        nodes = self.config.nodes if self.config else ()
        return next((node.name for node in nodes if node.nodeid == nodeid), "")

    def _strangers(self) -> int:
        return sum(not peer.name for peer in self._peers.values())

    def named(self, name: str) -> Peer | None:
        """Return the node with this name, if it is ours, or in the configuration and was heard."""
        return next((peer for peer in self if peer.name == name), None)

    def __iter__(self) -> Iterator[Peer]:
        """Yield this node, then the others of the configuration that were heard, by id."""
        yield self.own
        yield from (peer for _, peer in sorted(self._peers.items()) if peer.name)

    def addresses(self) -> Mapping[str, str]:
        """Return node name -> address, for the nodes whose address is known."""
        return {peer.name: peer.address for peer in self if peer.address}
