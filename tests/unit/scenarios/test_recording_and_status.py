"""Recorded messages of the original's status group, from bytes to keys, log and addresses."""

import gzip
import json
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from pmxcfs._cpg import decode, encode
from pmxcfs.errors import NotFound
from pmxcfs.messages import Group, LogEntry, Message, Normal, SetKey, State
from pmxcfs.status import log_ring as ring
from pmxcfs.status.cluster_log import ClusterLog
from pmxcfs.status.counters import Status
from pmxcfs.tree.guests import Guests
from tests.fakes.data.configs import config
from tests.places import VECTORS


class Sent(NamedTuple):
    sender: int
    message: Message


def recorded() -> Iterator[Sent]:
    """Yield the recorded messages in the order of the senders' clocks."""
    lines = (VECTORS / "cpg_kvstore.jsonl").read_text().splitlines()
    for line in sorted(map(json.loads, lines), key=lambda line: int(line["decoded"]["time"])):
        raw = bytes.fromhex(line.get("hex", "") + line.get("header_hex", ""))
        if "payload_file" in line:
            raw += gzip.decompress((VECTORS / line["payload_file"]).read_bytes())
        yield Sent(line["sender"], decode(raw, group=Group.STATUS))


@pytest.mark.parametrize("nodeid", [1, 2, 3])
def test_recorded_messages_make_the_recorded_status(nodeid: int) -> None:
    status = Status(f"node{nodeid}", Guests(), start_time=0)
    status.members.configure(config("node1", "node2", "node3"))
    states = []
    for sender, message in recorded():
        if isinstance(message, State):
            states.append(message.payload)
        elif isinstance(message, Normal):
            body = message.body
            if isinstance(body, SetKey):
                status.keys.receive(sender, body, now=message.time)
            elif isinstance(body, LogEntry):
                status.log.insert(body)
    addresses = {f"node{number}": f"10.99.0.{number}" for number in (1, 2, 3) if number != nodeid}
    assert status.members.addresses() == addresses
    if nodeid == 2:  # a node gets its own keys from its clients, not from messages
        assert status.keys.versions() == {"node2": {}}
    else:
        assert status.keys.get("tasklist", "node2") == b"[]\0"
        with pytest.raises(NotFound):
            status.keys.get("mykey", "node2")
        assert b"pve2-node/node2:5000:0:" in status.metrics.render(1795367942)
    assert [entry.uid for entry in status.log] == [3, 2]
    status.log.merge(states)
    assert [entry.uid for entry in status.log] == [3, 1, 2, 1, 1]
    assert status.log.state() == states[-1]


def test_a_log_entry_is_the_same_from_a_message_and_from_a_ring() -> None:
    log = ClusterLog("node1")
    for text in ("text", "x" * 5000, "", '\xe4"\n'):
        entry = log.compose(text, ident="root@pam", tag="t", priority=3, pid=2**32 - 1, time=7)
        message = Normal(7, 1, entry)
        assert decode(encode(message, group=Group.STATUS), group=Group.STATUS) == message
        assert list(ring.walk(bytes(ring.LogRing.of([entry])))) == [entry]
        assert len(encode(message, group=Group.STATUS)) == 24 + ring.nominal_size(entry)
