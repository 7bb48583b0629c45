"""Replays cluster scenarios: the commands in ``tests/scenarios/*.txt`` and their expected effects.

A block is commands, a line ``----``, the effects (node by node, each in its own order) and an empty
line. ``#`` begins a comment. After each command all nodes run until no event is left.

    nodes N [status]        begin with N nodes, none running, in the tree's or the status group;
                            for node ids other than 1 to N give the ids, 1,5,7 for example
    start N...              start the process on each of these nodes
    kill N / crash N        end the process / cut the power
    freeze N / thaw N       stop and continue the process
    block N [COUNT]         corosync on N takes COUNT more messages, then none
    unblock N               corosync on N takes messages again
    hold N / release N      do not order / order the messages that corosync on N accepts
    split 1,2 | 3 / heal    set the nodes that reach one another / let all do so
    see-again N...          only these nodes see a membership change, the others see none
    force N                 N is quorate, whatever the number of votes
    mkdir N PATH            and create, delete, write N PATH TEXT, set N KEY VALUE: ask for a change
    spoil N PATH            change a file of N without telling any node
    sync-start N            N multicasts an unexpected SYNC_START
    newer N / older N       N multicasts a message of another protocol version
    deadline NAME SECONDS   change a deadline on all running nodes
    tick SECONDS            let time pass
    quiet COMMAND...        run any of these and ignore its effects
    show                    print the mode and the content of each running node

``python -m tests.fakes.simulation.scenario FILE...`` writes the actual effects into the files.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from pmxcfs.messages import Body, Create, Delete, Epoch, Group, Mkdir, SetKey, SyncStart, Write
from tests.fakes.simulation.bus import Foreign
from tests.fakes.simulation.cluster import Cluster
from tests.fakes.simulation.peer import TreeContent, Wish, describe_body, record_of, records_of

_SEPARATOR = "----"


class Scenario:
    """The cluster of one scenario, and the changes that it waits for."""

    def __init__(self) -> None:
        self._cluster = Cluster([1])
        self._facts: dict[int, list[str]] = {}
        self._wishes: list[tuple[int, Wish]] = []
        self._commands: dict[str, Callable[..., None]] = {
            "nodes": self._nodes,
            "start": self._start,
            "kill": lambda node: self._cluster.kill(int(node)),
            "crash": lambda node: self._cluster.crash(int(node)),
            "freeze": lambda node: self._cluster.frozen.add(int(node)),
            "thaw": lambda node: self._cluster.frozen.remove(int(node)),
            "block": self._block,
            "unblock": self._unblock,
            "hold": lambda node: self._cluster.held.add(int(node)),
            "release": lambda node: self._cluster.held.remove(int(node)),
            "split": self._split,
            "heal": lambda: self._cluster.heal(),
            "see-again": lambda *nodes: self._cluster.bus.see_again([int(node) for node in nodes]),
            "force": self._force,
            "mkdir": lambda node, path: self._wish(node, Mkdir(path)),
            "create": lambda node, path: self._wish(node, Create(path)),
            "delete": lambda node, path: self._wish(node, Delete(path)),
            "write": self._write,
            "set": lambda node, key, value: self._wish(node, SetKey(key, value.encode())),
            "spoil": self._spoil,
            "sync-start": self._sync_start,
            "newer": lambda node: self._foreign(node, is_newer=True),
            "older": lambda node: self._foreign(node, is_newer=False),
            "deadline": self._deadline,
            "tick": lambda seconds: self._cluster.tick(int(seconds)),
            "quiet": self._quiet,
            "show": self._show,
        }

    def play(self, lines: list[str]) -> list[str]:
        """Execute the commands of a block and return their effects, one a line."""
        self._facts = {}
        for line in lines:
            words = line.partition("#")[0].split()
            if words:
                self._execute(words)
        return [f"{node} {text}" for node in sorted(self._facts) for text in self._facts[node]]

    def _execute(self, words: list[str]) -> None:
        self._commands[words[0]](*words[1:])
        self._cluster.run()
        for node, wish in self._wishes:
            if wish.outcome not in ("waits", "sent", "lost"):
                self._tell(node, f"has {describe_body(wish.body)}: {wish.outcome}")
        self._wishes = [(n, wish) for n, wish in self._wishes if wish.outcome in ("waits", "sent")]

    def _tell(self, node: int, text: str) -> None:
        self._facts.setdefault(node, []).append(text)

    def _nodes(self, size: str, group: str = "tree") -> None:
        listed = [int(node) for node in size.split(",")]
        nodes = range(1, listed[0] + 1) if len(listed) == 1 else listed
        self._cluster = Cluster(nodes, group=Group[group.upper()], tell=self._tell)

    def _start(self, *nodes: str) -> None:
        for node in nodes:
            self._cluster.start(int(node))

    def _block(self, node: str, count: str = "0") -> None:
        peer = self._cluster.peers[int(node)]
        peer.is_blocked, peer.allowance = True, int(count)

    def _unblock(self, node: str) -> None:
        self._cluster.peers[int(node)].is_blocked = False

    def _split(self, *words: str) -> None:
        parts = " ".join(words).split("|")
        self._cluster.split([[int(node) for node in part.split(",")] for part in parts])

    def _force(self, node: str) -> None:
        peer = self._cluster.peers[int(node)]
        peer.is_forced = peer.is_quorate = True

    def _wish(self, node: str, body: Body) -> None:
        self._wishes.append((int(node), self._cluster.peers[int(node)].wish(body)))

    def _write(self, node: str, path: str, *words: str) -> None:
        self._wish(node, Write(path, 0, " ".join(words).encode(), truncate=True))

    def _spoil(self, node: str, path: str) -> None:
        content = self._cluster.contents[int(node)]
        assert isinstance(content, TreeContent)
        records = records_of(content.tree)
        entry = content.tree.find(path)
        assert entry is not None
        records[entry.inode] = record_of(entry)._replace(writer=99)
        content.load(records.values())

    def _sync_start(self, node: str) -> None:
        port = self._cluster.bus.ports[int(node)]
        port.queue.append(SyncStart(0, Epoch(99, 0, *port.member)))

    def _foreign(self, node: str, *, is_newer: bool) -> None:
        port = self._cluster.bus.ports[int(node)]
        port.queue.append(Foreign(port.member, is_newer))

    def _deadline(self, name: str, seconds: str) -> None:
        for peer in self._cluster.peers.values():
            peer.with_deadlines(**{name: float(seconds)})

    def _quiet(self, *words: str) -> None:
        before = {node: list(facts) for node, facts in self._facts.items()}
        self._execute(list(words))
        self._facts = before

    def _show(self) -> None:
        for node, peer in self._cluster.peers.items():
            content = self._cluster.contents[node]
            what = (
                f"version {content.tree.version}, checksum {content.tree.checksum().hex()[:8]}"
                if isinstance(content, TreeContent)
                else f"log {sorted(content.lines)}"
            )
            self._tell(node, f"stands in {peer.dfsm.mode.value}, {what}")


def blocks_of(text: str) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the commands and the expected effects of each block."""
    for block in text.strip().split("\n\n"):
        lines = block.splitlines()
        place = lines.index(_SEPARATOR) if _SEPARATOR in lines else len(lines)
        yield lines[:place], lines[place + 1 :]


def rewritten(text: str) -> str:
    """Return the scenario with the actual effects in place of the expected ones."""
    scenario = Scenario()
    blocks = []
    for commands, _ in blocks_of(text):
        facts = scenario.play(commands)
        is_prose = all(line.startswith("#") for line in commands)
        blocks.append("\n".join(commands if is_prose else [*commands, _SEPARATOR, *facts]))
    return "\n\n".join(blocks) + "\n"


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(rewritten(path.read_text()))
