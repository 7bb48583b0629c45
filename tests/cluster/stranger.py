"""A member of both groups that is no daemon: healthy in the rounds, and free to send anything.

``join`` runs in a node. In a round it tells what the first other member told, so that all are
synced. Run it on the node with the highest id, so that it is not the member that acts for all.
"""

import contextlib
import os
import select
from multiprocessing.connection import Connection

from pmxcfs._cpg import Cpg, decode, encode
from pmxcfs.errors import BadMessage, TryAgain
from pmxcfs.messages import Epoch, Group, Member, State

PAUSE = 0.01  # seconds until a send that had no room is tried again


class Stranger:
    """One group as it sees it."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._told: Epoch | None = None  # the round that we have told our state in
        self.handle = Cpg(self)
        self.handle.connect()
        self._me = Member(self.handle.local_nodeid(), os.getpid())
        self.handle.join(group.cpg_name)

    def on_confchg(self, *_: object) -> None:
        """Whoever is there: the rounds tell."""

    def on_deliver(self, sender: Member, data: bytes) -> None:
        """Copy the first state that another member tells in a round."""
        with contextlib.suppress(BadMessage):
            message = decode(data, group=self._group)
            is_first = isinstance(message, State) and message.epoch != self._told
            if isinstance(message, State) and is_first and sender != self._me:
                self._told = message.epoch
                self.send(encode(message, group=self._group))

    def dispatch(self) -> None:
        """Hear what there is."""
        while self.handle.dispatch_one():
            pass

    def send(self, data: bytes) -> None:
        """Multicast *data*, when there is room."""
        while True:
            try:
                self.handle.mcast(data)
            except TryAgain:
                select.select([], [], [], PAUSE)
            else:
                return


def join(connection: Connection) -> None:
    """Be a member of both groups, and send what is asked for: (a group's name, bytes).

    Tells that it has been sent.
    """
    groups = {group.name: Stranger(group) for group in Group}
    while True:
        files = [connection.fileno(), *(one.handle.fileno() for one in groups.values())]
        ready, _, _ = select.select(files, [], [])
        for stranger in groups.values():
            stranger.dispatch()
        if connection.fileno() in ready:
            name, data = connection.recv()
            groups[name].send(data)
            connection.send(len(data))
