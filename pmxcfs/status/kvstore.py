"""The key/value store: keys that each node sets for itself and sends to all others; in RAM only.

Two kinds of keys are special: ``nodeip`` sets the node's address in ``.members``, and ``rrd/…``
goes to the metrics. All other keys are stored with a version, which ``.version`` shows. Callers
hold the tree's lock. Contract: docs/spec/status.md, "Key/value store".
"""

import logging
from collections.abc import Mapping

from pmxcfs.errors import NameTooLong, NoSpace, NotFound, TooBig
from pmxcfs.host.log_limit import LogLimit
from pmxcfs.messages import SetKey
from pmxcfs.status.members import Members, Peer
from pmxcfs.status.metrics import PREFIX, Metrics
from pmxcfs.text import to_bytes

MAX_KEY = 255  # bytes
MAX_VALUE = 32768  # bytes
ADDRESS = "nodeip"
MAX_ADDRESS = 255  # bytes, without NUL


class KeyValueStore:
    """The keys of all nodes."""

    def __init__(self, members: Members, metrics: Metrics) -> None:
        self.revision = 0  # changes with every version
        self._members = members
        self._metrics = metrics
        self._log_limit = LogLimit(logging.getLogger("pmxcfs.status"))

    def set(self, key: str, value: bytes, *, now: float) -> None:
        """Set a key of this node; an empty value removes it. *now* is monotonic, in seconds.

        The caller then sends the key to the other nodes. Raises NameTooLong, TooBig, and NoSpace if
        this node's keys would be too large in total.
        """
        if len(to_bytes(key)) > MAX_KEY:
            raise NameTooLong(f"a key has at most {MAX_KEY} bytes")
        if len(value) > MAX_VALUE:
            raise TooBig(f"a value has at most {MAX_VALUE} bytes")
        self._set(self._members.own, key, value, now=now)

    def receive(self, nodeid: int, change: SetKey, *, now: float) -> None:
        """Set a key that the node *nodeid* sent; this node's own messages are ignored.

        *now* is monotonic, in seconds. Invalid keys are logged and dropped.
        """
        peer = self._members.sender(nodeid)
        if peer is None:
            self._drop(nodeid, "unknown", f"node {nodeid}, which is not in the configuration")
        elif len(change.value) > MAX_VALUE:
            size = len(change.value)
            self._drop(nodeid, "size", f"node {nodeid}: a value of {size} bytes is too large")
        elif peer is not self._members.own:
            try:
                self._set(peer, change.key, change.value, now=now)
            except NoSpace as error:
                self._drop(nodeid, "space", f"node {nodeid}: {error}")

    def _drop(self, nodeid: int, kind: str, why: str) -> None:
        self._log_limit.warn((nodeid, kind), f"dropped a key of {why}")

    def _set(self, peer: Peer, key: str, value: bytes, *, now: float) -> None:
        if key.startswith(PREFIX):
            self._metrics.set(key.removeprefix(PREFIX), value, now=now)
        elif key == ADDRESS:
            self._set_address(peer, value)
        elif value:
            peer.keys.put(key, value)
            self.revision += 1
        elif peer.keys.remove(key):
            self.revision += 1

    def _set_address(self, peer: Peer, value: bytes) -> None:
        text, terminator, _ = value.partition(b"\0")
        address = text.decode("ascii", "surrogateescape")  # not printable if it is not ASCII
        if terminator and 0 < len(text) <= MAX_ADDRESS and address.isprintable():
            self._members.set_address(peer, address)
        else:
            name = peer.name or "unknown"
            fault = f"the address from node {name} is not printable text that ends with NUL"
            self._log_limit.warn(("address", name), fault)

    def get(self, key: str, node: str = "") -> bytes:
        """Return the value of a key of *node*; of this node if *node* is empty. Raises NotFound."""
        peer = self._members.named(node or self._members.own.name)
        if peer is None or key not in peer.keys.values:
            raise NotFound(f"no key {key} of node {node}")
        return peer.keys.values[key].content

    def own_messages(self) -> list[SetKey]:
        """Return all keys of this node, to send once it is in sync with other nodes."""
        own = self._members.own
        messages = [SetKey(key, value.content) for key, value in own.keys.values.items()]
        if own.address:
            messages.append(SetKey(ADDRESS, own.address.encode("ascii") + b"\0"))
        return messages

    def versions(self) -> Mapping[str, Mapping[str, int]]:
        """Return node -> key -> version, for this node and all nodes that ever set a key."""
        return {
            peer.name: {key: value.version for key, value in peer.keys.values.items()}
            for peer in self._members
            if peer.keys.is_used or peer is self._members.own
        }
