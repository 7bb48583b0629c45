"""Latency of IPC requests: answers from RAM, and properties of 10,000 guests."""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.conditions import ONE_CPU, placed
from bench.data import HOME, NODE, SMALL, mounted_files
from bench.goals import Goal
from bench.populate import write_database
from bench.report import Report
from bench.servers import ECHO_SOURCE, Server, echo_server, ipc_name, pmxcfs_server
from pmxcfs.ipc._qbclient import Client
from pmxcfs.ipc.requests import Number
from tests.clients.serving import CClient, compile_client
from tests.clients.traffic import p99, users

TURNS, REQUESTS = 10, 3000  # alternating: REQUESTS on one side, then on the other
FACTOR = 1.5  # times the libqb server that answers with zeros
CONFIG = f"{HOME}/100.conf"
READY = {
    "get version": (Number.GET_FS_VERSION, b""),
    "get members": (Number.GET_CLUSTER_INFO, b""),
    "get guests": (Number.GET_GUEST_LIST, b""),
    "get config, 1 KiB": (Number.GET_CONFIG, f"{CONFIG}\0".encode()),
    "get rrd": (Number.GET_RRD_DUMP, b""),
}

GUESTS = 10_000  # more than any cluster has
CONFIGURATION = (
    "boot: order=scsi0;net0\ncores: 4\ncpu: x86-64-v2-AES\nmemory: 8192\nname: guest-{vmid}\n"
    "net0: virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1\nnuma: 0\nonboot: 1\nostype: l26\n"
    "scsi0: local-zfs:vm-{vmid}-disk-0,iothread=1,size=32G\nscsihw: virtio-scsi-single\n"
    "smbios1: uuid=00000000-0000-0000-0000-000000000000\nsockets: 1\ntags: prod;web\n"
)
NAMES = b"\0\0\0\0\2name\0tags\0"
FIRST_MS, AGAIN_MS, LIST_MS = 100.0, 5.0, 1.0
CHANGES = 20
USERS, SECONDS = 3, 4.0


def bench_ready_answers(workdir: Callable[[], Path], scratch: Path, report: Report) -> None:
    directory = workdir()
    write_database(directory / "state" / "config.db", mounted_files())
    client = CClient(compile_client(scratch))
    echo = compile_client(scratch, ECHO_SOURCE)
    bare = f"{ipc_name(directory)}-echo"
    with (
        placed(ONE_CPU),
        pmxcfs_server(directory),
        echo_server(echo, bare),
        Client(ipc_name(directory)) as asking,
    ):
        for name, (number, payload) in READY.items():
            size = len(asking.ask(number, payload))
            ours, base = [], []
            for _ in range(TURNS):
                base.append(median_us(client, bare, size, b""))
                ours.append(median_us(client, ipc_name(directory), number, payload))
            report.add(
                "ipc",
                f"{name} ({size} bytes)",
                unit="µs",
                ours=statistics.median(ours),
                base=statistics.median(base),
                goal=Goal(FACTOR),
            )


def median_us(client: CClient, name: str, number: int, payload: bytes) -> float:
    answer = client.run(name, "time", str(REQUESTS), str(int(number)), payload.hex())
    return int(answer.split()[0]) / 1000


def bench_properties_of_many_guests(workdir: Callable[[], Path], report: Report) -> None:
    directory = workdir()
    write_database(directory / "state" / "config.db", guests())
    with pmxcfs_server(directory) as server, asking(directory) as ask:
        number = Number.GET_GUEST_CONFIG_PROPERTIES
        first = ask(number, NAMES)
        report.add(
            "guests",
            "properties, first",
            unit="ms",
            ours=first,
            base=first,
            goal=Goal(absolute=FIRST_MS),
        )
        again = []
        for change in range(CHANGES):
            rewrite(server, 100 + change)
            again.append(ask(number, NAMES))
        report.add(
            "guests",
            "properties, after a change",
            unit="ms",
            ours=statistics.median(again),
            base=first,
            goal=Goal(absolute=AGAIN_MS),
        )
        ask(Number.GET_GUEST_LIST, b"")
        lists = [ask(Number.GET_GUEST_LIST, b"") for _ in range(CHANGES)]
        report.add(
            "guests",
            "guest list, unchanged",
            unit="ms",
            ours=statistics.median(lists),
            base=first,
            goal=Goal(absolute=LIST_MS),
        )


def bench_users_beside_property_queries(workdir: Callable[[], Path], report: Report) -> None:
    directory = workdir()
    write_database(directory / "state" / "config.db", guests())
    with pmxcfs_server(directory) as server, asking(directory) as ask:
        root = Path(server.root)
        with users(root, count=USERS, seconds=SECONDS) as traffic:
            alone = p99(traffic.times())
        with users(root, count=USERS, seconds=SECONDS) as traffic:
            end = time.monotonic() + SECONDS
            numbers = itertools.count()
            while time.monotonic() < end:  # each with a new name, so that all files are read
                ask(Number.GET_GUEST_CONFIG_PROPERTY, b"\0\0\0\0a%d\0" % next(numbers))
            beside = p99(traffic.times())
    report.add(
        "clients",
        f"users' p99 beside {next(numbers)} queries of all guests",
        unit="µs",
        ours=beside,
        base=alone,
        goal=Goal(),
    )


def guests() -> Iterator[tuple[str, bytes]]:
    """Yield the configurations of GUESTS guests, each of 1 KiB."""
    for vmid in range(100, 100 + GUESTS):
        content = CONFIGURATION.format(vmid=vmid).encode()
        yield f"nodes/{NODE}/qemu-server/{vmid}.conf", content.ljust(len(SMALL[0]), b"#")


def rewrite(server: Server, vmid: int) -> None:
    path = Path(server.root, "nodes", NODE, "qemu-server", f"{vmid}.conf")
    path.write_text(f"name: renamed-{time.monotonic_ns()}\n")


@contextmanager
def asking(directory: Path) -> Iterator[Callable[[int, bytes], float]]:
    """Connect; yield a function that sends a request and returns its latency in ms."""
    with Client(ipc_name(directory), buffer_size=4 << 20) as client:

        def ask(number: int, payload: bytes) -> float:
            start = time.perf_counter()
            client.ask(number, payload)
            return (time.perf_counter() - start) * 1000

        yield ask
