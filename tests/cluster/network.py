"""The network between nodes: a bridge in a network namespace without a name or process.

The bridge has one port for each node, with the node's name. One nftables chain decides which frames
the bridge drops; it is always replaced as a whole.
"""

import os
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from itertools import permutations

BITS = 24
PREFIX = "192.0.2"  # RFC 5737: addresses for documentation
MAX_NODES = 200

CREATE = "ip link add lab type bridge; ip link set lab up; echo; read _"
CHAIN = """
table bridge lab {{}}
delete table bridge lab
table bridge lab {{
  chain forward {{
    type filter hook forward priority 0;
{rules}
  }}
}}
"""


def address(number: int) -> str:
    """Return the address of node *number*."""
    assert 0 < number <= MAX_NODES
    return f"{PREFIX}.{number}"


class Network:
    """A bridge; ``close`` makes it go away, as the end of this process does."""

    def __init__(self) -> None:
        self._sides: Sequence[Sequence[str]] = ()
        self._unplugged: set[str] = set()
        self._loss = 0
        argv = ("unshare", "--net", "sh", "-euc", CREATE)
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as maker:
            assert maker.stdin
            assert maker.stdout
            made = maker.stdout.readline()
            self.descriptor = os.open(f"/proc/{maker.pid}/ns/net", os.O_RDONLY) if made else -1
            maker.stdin.write(b"\n")
        assert self.descriptor >= 0, "there is no network namespace for the lab"

    def close(self) -> None:
        """Close the namespace; it exists as long as a process of a node runs in it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def part(self, *sides: Iterable[str]) -> None:
        """Let only nodes of the same side reach one another. Replaces an earlier partition."""
        self._sides = [sorted(side) for side in sides]
        self._apply()

    def join(self) -> None:
        """Undo ``part``."""
        self.part()

    def heal(self) -> None:
        """Let all nodes reach one another, without loss."""
        self._loss = 0
        for name in sorted(self._unplugged):
            self.plug(name)
        self.join()

    def lose(self, percent: int) -> None:
        """Drop this share of the frames between nodes, at random."""
        self._loss = percent
        self._apply()

    def unplug(self, name: str) -> None:
        """Remove the carrier of a node's interface."""
        self._unplugged.add(name)
        self.run("ip", "link", "set", name, "down")

    def plug(self, name: str) -> None:
        """Undo ``unplug``."""
        self.run("ip", "link", "set", name, "up")
        self._unplugged.discard(name)

    def run(self, *argv: str, text: str = "") -> str:
        """Run a program in the namespace of the bridge; return what it printed."""
        enter = ("nsenter", f"--net=/proc/self/fd/{self.descriptor}")
        done = subprocess.run(
            (*enter, *argv),
            input=text,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            pass_fds=[self.descriptor],
        )
        return done.stdout

    def _apply(self) -> None:
        self.run("nft", "-f", "-", text=CHAIN.format(rules="\n".join(self._rules())))

    def _rules(self) -> Iterator[str]:
        for here, there in permutations(self._sides, 2):
            yield f"iifname {{ {', '.join(here)} }} oifname {{ {', '.join(there)} }} drop"
        if self._loss:
            yield f"numgen random mod 100 <= {self._loss - 1} drop"
