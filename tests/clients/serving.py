"""A libqb service with the state of the recordings, and the client in C."""

import contextlib
import errno
import gzip
import json
import shlex
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pmxcfs._core import Tree
from pmxcfs.daemon.save_requests import SaveRequests
from pmxcfs.ipc.guest_properties import Properties
from pmxcfs.ipc.requests import Requests
from pmxcfs.ipc.server import IpcServer
from pmxcfs.messages import ClusterConfig, ClusterNode, Member, SetKey
from pmxcfs.status.counters import Status
from pmxcfs.status.files import status_files
from pmxcfs.storage.database import Database
from pmxcfs.tree.guests import Guests
from tests.places import VECTORS

SOURCE = Path(__file__).parent / "client.c"
NOW = 1795368130  # the time of the recordings, in seconds since 1970
GROUP = 33  # www-data's gid
NAMES = (b"node1", b"node2", b"node3")


class Recorded(NamedTuple):
    """A recorded request and its answer."""

    note: str
    id: int
    request: bytes
    error: int
    response: bytes


def recordings() -> list[Recorded]:
    """Return the recorded requests, in the order of recording."""
    lines = map(json.loads, (VECTORS / "ipc.jsonl").read_text().splitlines())
    return [
        Recorded(
            line["note"],
            line["id"],
            bytes.fromhex(line["request"]),
            line["error"],
            bytes.fromhex(line["response"]),
        )
        for line in lines
    ]


def recorded_requests(workdir: Path, *, publish: list[Any] | None = None) -> Requests:
    """Return Requests with the state that node2 had when the requests were recorded."""
    tree, guests = Tree(), Guests()
    database = workdir / "config.db"
    database.write_bytes((VECTORS / "config_node1.db").read_bytes())
    with contextlib.closing(Database.open(database, now=NOW)) as opened:
        tree.load(opened.load(now=NOW).records)
    guests.rebuild(tree)
    status = Status("node2", guests, start_time=NOW)
    _fill(status)
    lock = threading.RLock()
    return Requests(
        tree,
        guests,
        status,
        status_files(status, handed=lambda: 0, monotonic=lambda: 0.0),
        Properties(tree, guests, lock=lock),
        lock=lock,
        clock=lambda: NOW,
        monotonic=lambda: 0.0,
        give_way=lambda: None,
        publish=publish.append if publish is not None else None,
        report=dict,
        saves=SaveRequests(lambda: None),
    )


def _fill(status: Status) -> None:
    nodes = tuple(ClusterNode(f"node{i}", i, f"10.99.0.{i}", 1) for i in (1, 2, 3))
    status.members.configure(ClusterConfig("lab", 3, nodes))
    status.members.set_present(Member(i, 100) for i in (1, 2, 3))
    status.members.set_quorate(True)
    status.keys.set("nodeip", b"10.99.0.2\0", now=0)
    for nodeid in (1, 3):
        address = b"10.99.0.%d\0" % nodeid
        status.keys.receive(nodeid, SetKey("nodeip", address), now=0)
    status.keys.set("tasklist", b"[]\0", now=0)
    metric = (VECTORS / "status_files" / "node2.rrd").read_bytes().strip().partition(b":")[2]
    status.keys.set("rrd/pve2-node/node2", metric + b"\0", now=0)
    rings = sorted(VECTORS.glob("clusterlog_state_*_1795367968.bin.gz"))
    status.log.merge(gzip.decompress(path.read_bytes()) for path in rings)


@contextlib.contextmanager
def served(requests: Requests, workdir: Path, *, name: str) -> Iterator[IpcServer]:
    """Run an IpcServer that answers with *requests*."""
    server = IpcServer(name, gid=GROUP, flag=workdir / "flag")
    server.start(requests)
    try:
        yield server
    finally:
        server.close()


@dataclass
class CClient:
    """The compiled client in C."""

    program: Path

    def ask(
        self,
        name: str,
        number: int,
        payload: bytes = b"",
        *,
        more: int = 0,
        identity: Sequence[str] = (),
    ) -> tuple[int, bytes]:
        """Send a request; return the answer's error, 0 or negative, and content.

        The request's header claims *more* bytes than are sent. *identity* is a command that runs
        the client as another user. Raises OSError if the connection is refused.
        """
        result = self.run(name, "ask", str(number), payload.hex(), str(more), identity=identity)
        first, _, rest = result.partition(" ")
        if first == "connect":
            raise OSError(int(rest), f"refused: {errno.errorcode[int(rest)]}")
        return int(first), bytes.fromhex(rest)

    def run(self, name: str, *arguments: str, identity: Sequence[str] = ()) -> str:
        """Run the client to its end; return its output."""
        command = [*identity, str(self.program), name, *arguments]
        return subprocess.run(
            command, stdout=subprocess.PIPE, text=True, timeout=600, check=False
        ).stdout.strip()

    def start(
        self, name: str, *arguments: str, ready: bool = True, identity: Sequence[str] = ()
    ) -> subprocess.Popen[str]:
        """Start the client; with *ready*, wait for its first line or its end."""
        command = [*identity, str(self.program), name, *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        if ready:
            assert process.stdout is not None
            process.stdout.readline()
        return process


def compile_client(directory: Path, source: Path = SOURCE) -> Path:
    """Compile a program with libqb; return the path of the executable."""
    program = directory / source.stem
    query = ["pkg-config", "--cflags", "--libs", "libqb"]
    flags = subprocess.run(query, check=True, capture_output=True, text=True).stdout
    options = ["-O2", "-rdynamic", "-Wall", "-Wextra", "-Werror", *shlex.split(flags)]
    subprocess.run(["cc", str(source), "-o", str(program), *options], check=True)
    return program
