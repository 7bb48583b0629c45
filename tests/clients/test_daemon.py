"""A daemon and its local clients: answers, load, misbehaving clients, rrdcached, commands."""

import json
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pmxcfs.errors import IpcError
from pmxcfs.ipc.client import IpcClient as Client
from pmxcfs.rrd import writer as rrd
from tests.clients.rrdcached import RrdCached, metric
from tests.clients.serving import CClient
from tests.clients.traffic import p99, users
from tests.harness import Daemon, ipc_name, mounted

pytestmark = pytest.mark.needs_fuse

TIMEOUT = 30.0  # seconds
STOP_DEADLINE = 3.0
BAD_CLIENTS = 50  # misbehaving clients at once
CLOSED_BEFORE_TRIM = 64  # connections, after which the daemon returns memory to the system
TIMES_ALONE = 5  # limit for the p99 of users beside clients, as a multiple of their p99 alone


@contextmanager
def daemon_and_client(workdir: Path, *flags: str | Path) -> Iterator[tuple[Daemon, Client]]:
    with mounted(workdir, *flags) as daemon, Client(ipc_name(workdir)) as client:
        yield daemon, client


def await_true(condition: Callable[[], bool]) -> None:
    """Wait until *condition* holds, for at most TIMEOUT; poll it."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# Answers


def test_clients_get_the_content_of_the_mount(tmp_path: Path) -> None:
    with daemon_and_client(tmp_path) as (daemon, client):
        home = daemon.path / "nodes" / "node1" / "qemu-server"
        home.mkdir(parents=True)
        (home / "100.conf").write_text("name: web\ncores: 2\n[old]\nname: before\n")
        assert client.config("nodes/node1/qemu-server/100.conf").startswith(b"name: web\n")
        assert json.loads(client.guests())["ids"]["100"]["node"] == "node1"
        for name, ask in (
            (".version", client.version),
            (".vmlist", client.guests),
            (".members", client.members),
            (".clusterlog", client.cluster_log),
        ):
            assert (daemon.path / name).read_bytes() == ask(), name


def test_a_query_sees_each_change_at_once(tmp_path: Path) -> None:
    with daemon_and_client(tmp_path) as (daemon, client):
        home = daemon.path / "nodes" / "node1" / "qemu-server"
        home.mkdir(parents=True)

        def names() -> dict[str, str]:
            found = json.loads(client.properties(["name", "tags"]))
            return {vmid: properties["name"] for vmid, properties in found.items()}

        assert names() == {}
        for vmid in (100, 101):
            (home / f"{vmid}.conf").write_text(f"name: guest{vmid}\n")
            assert names()[str(vmid)] == f"guest{vmid}"
        (home / "100.conf").write_text("name: renamed\n")
        assert names() == {"100": "renamed", "101": "guest101"}
        (home / "101.conf").rename(home / "102.conf")
        assert names() == {"100": "renamed", "102": "guest101"}
        (home / "100.conf").unlink()
        assert names() == {"102": "guest101"}


def test_a_token_is_verified_by_the_file(tmp_path: Path) -> None:
    with daemon_and_client(tmp_path) as (daemon, client):
        assert not client.has_token("root@pam!a=1")
        (daemon.path / "priv").mkdir()
        (daemon.path / "priv" / "token.cfg").write_text("root@pam!a=1\nroot@pam!b=2\n")
        assert client.has_token("root@pam!a=1")
        assert client.has_token("root@pam!b=2")
        assert not client.has_token("root@pam!a=")
        with pytest.raises(IpcError):
            client.has_token("")


MESSAGES = [
    'a "quoted" text',
    "back\\slash and \\ two \\\\ and \\u00e4 and \\u00",
    "".join(map(chr, [*range(1, 32), 127])),
    "ä€𝄞",
    "\udcff\udcfe broken \udc80",
    "m" * 10_000,
    "\\" * 10_000,
    '"' * 5000,
    "",
]


@pytest.mark.parametrize("message", MESSAGES, ids=range(len(MESSAGES)))
def test_the_cluster_log_is_json_whatever_is_logged(
    message: str, tmp_path: Path, c_client: CClient
) -> None:
    with mounted(tmp_path) as daemon:
        raw = os.fsencode(message)
        payload = b"\6\5\4user\0tag\0" + raw + b"\0"
        assert c_client.ask(ipc_name(tmp_path), 7, payload) == (0, b"")
        (entry, first) = json.loads((daemon.path / ".clusterlog").read_bytes())["data"]
        assert first["msg"] == "starting cluster log"
        assert (entry["user"], entry["tag"], entry["pri"]) == ("user", "tag", 6)
        if message.isascii() and message.isprintable() and "\\" not in message:
            assert message.startswith(entry["msg"])
        _, log = c_client.ask(ipc_name(tmp_path), 8, b"\1" + bytes(16))
        assert json.loads(log)["data"] == [entry]


# Stops and starts


def test_a_stop_does_not_wait_for_clients(tmp_path: Path, c_client: CClient) -> None:
    with mounted(tmp_path) as daemon:
        clients = [
            c_client.start(ipc_name(tmp_path), *what)
            for what in (("half",), ("garbage", "1"), ("silent",))
        ]
        daemon.stop(grace=STOP_DEADLINE)
        assert (daemon.run / "cfs-restart-flag").exists()
        for client in clients:
            client.kill()
            client.communicate()
    assert not rings_of(daemon.process.pid)
    with mounted(tmp_path) as daemon:
        assert not (daemon.run / "cfs-restart-flag").exists()


def test_a_start_removes_the_shared_memory_of_a_killed_daemon(
    tmp_path: Path, c_client: CClient
) -> None:
    with mounted(tmp_path) as daemon:
        held = c_client.start(ipc_name(tmp_path), "half")
        daemon.kill()
        assert rings_of(daemon.process.pid)
    with mounted(tmp_path):
        assert not rings_of(daemon.process.pid)
    held.kill()
    held.communicate()


def test_a_name_in_use_is_reported(tmp_path: Path) -> None:
    with mounted(tmp_path / "first"):
        command = [sys.executable, "-m", "pmxcfs", "-f", "-l", "--nodename", "node1"]
        command += ["--ipc-name", ipc_name(tmp_path / "first")]
        command += ["--mountpoint", str(tmp_path / "pve"), "--statedir", str(tmp_path / "state")]
        command += ["--rundir", str(tmp_path / "run")]
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    assert result.returncode == 1
    assert "choose another name with --ipc-name" in result.stderr


def rings_of(pid: int) -> list[str]:
    return [name for name in os.listdir("/dev/shm") if name.startswith(f"qb-{pid}-")]


# Load


@pytest.mark.parametrize(
    ("clients", "requests", "seconds"),
    [(10, 2000, 3.0), pytest.param(50, 10_000, 20.0, marks=pytest.mark.long)],
)
def test_many_clients_beside_users_of_the_mount(
    clients: int,
    requests: int,
    seconds: float,
    tmp_path: Path,
    c_client: CClient,
    report: Callable[[object], None],
) -> None:
    with mounted(tmp_path) as daemon:
        (daemon.path / "flood.cfg").write_text("x\n" * 500)
        set_metric(c_client, ipc_name(tmp_path), "pve2-node/node1")
        with users(daemon.path, count=3, seconds=seconds) as traffic:
            alone = p99(traffic.times())
        with users(daemon.path, count=3, seconds=seconds) as traffic:
            flood = [
                c_client.start(ipc_name(tmp_path), "flood", str(requests), ready=False)
                for _ in range(clients)
            ]
            beside = p99(traffic.times())
        failed = [process.communicate(timeout=600)[0].strip() for process in flood]
    assert failed == ["0"] * clients
    report(f"{clients} x {requests} requests; p99 of users {alone:.0f} -> {beside:.0f} us")
    if clients == 50:
        assert beside <= TIMES_ALONE * alone


def set_metric(client: CClient, name: str, key: str) -> None:
    payload = f"rrd/{key}".encode().ljust(256, b"\0") + metric(key) + b"\0"
    assert client.ask(name, 4, payload) == (0, b"")


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=pytest.mark.long)])
def test_misbehaving_clients_leak_nothing_and_delay_no_client(
    rounds: int, tmp_path: Path, c_client: CClient, report: Callable[[object], None]
) -> None:
    name, slowest = ipc_name(tmp_path), 0.0
    with daemon_and_client(tmp_path) as (daemon, client):
        # The first round makes the allocations that a process makes once.
        stop_all(start_bad_clients(c_client, name, count=BAD_CLIENTS, seed=-1))
        before = usage_after_trim(daemon, name)
        for number in range(rounds):
            seed = number * BAD_CLIENTS
            bad = start_bad_clients(c_client, name, count=BAD_CLIENTS, seed=seed)
            for _ in range(100):
                asked, starvation = time.monotonic(), daemon.starvation()
                client.members()
                slowest = max(slowest, time.monotonic() - asked - starvation.seconds())
            stop_all(bad)
        after = usage_after_trim(daemon, name)
    report(
        f"{rounds} x {BAD_CLIENTS} clients: {before} -> {after}; slowest {slowest * 1000:.0f} ms"
    )
    assert after["descriptors"] <= before["descriptors"]
    assert after["kilobytes"] < before["kilobytes"] + 8192
    assert slowest < 1.0


def usage_after_trim(daemon: Daemon, name: str) -> dict[str, int]:
    """Return the daemon's usage after all clients but one are gone and memory was returned."""
    for _ in range(2 * CLOSED_BEFORE_TRIM):
        Client(name).close()
    await_true(lambda: len(rings_of(daemon.process.pid)) == 1)
    return usage(daemon.process.pid)


def start_bad_clients(
    client: CClient, name: str, *, count: int, seed: int
) -> list[subprocess.Popen[str]]:
    """Start *count* clients of all misbehaving kinds."""
    kinds = (("half",), ("garbage", str(seed)), ("silent",), ("unread", "1"), ("half",))
    return [client.start(name, *kinds[n % len(kinds)]) for n in range(count)]


def stop_all(clients: list[subprocess.Popen[str]]) -> None:
    for process in clients:
        process.send_signal(signal.SIGKILL)
    for process in clients:
        process.communicate()


def usage(pid: int) -> dict[str, int]:
    """Return the numbers of a process's resources that can leak."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return {
        "kilobytes": int(line.split()[1]),
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
    }


# rrdcached


MOODS = ("running", "stopped", "hung", "missing", "full")


@pytest.mark.parametrize("seconds", [1.0, pytest.param(8.0, marks=pytest.mark.long)])
def test_no_client_waits_for_rrdcached(
    seconds: float, tmp_path: Path, c_client: CClient, report: Callable[[object], None]
) -> None:
    results = {}
    for mood in MOODS:
        (tmp_path / mood).mkdir()
        results[mood] = measure(tmp_path / mood, mood, c_client, seconds=seconds)
    lines = [
        f"{mood}: users {us[0]:.0f} us, clients {us[1]:.0f} us" for mood, us in results.items()
    ]
    report("p99 with rrdcached " + "; ".join(lines))
    for times in results.values():
        assert max(times) < 1e6 * rrd.TIMEOUT / 2  # no request waits for rrdcached's timeout
    if seconds > 1:
        for mood in MOODS[1:]:
            for got, first in zip(results[mood], results["running"], strict=True):
                assert got <= 1.5 * first, mood


def measure(workdir: Path, mood: str, c_client: CClient, *, seconds: float) -> tuple[float, float]:
    """Return the p99 of users and of clients, in microseconds."""
    database = workdir / "db"
    cached = RrdCached(workdir)
    flags = ("--rrddir", database, "--rrdcached-socket", cached.socket)
    expected = []
    if mood == "full":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", database], check=True)
        expected.append("writing metrics")
    elif mood in ("stopped", "missing"):
        cached.stop()
        if mood == "missing":
            cached.socket.unlink(missing_ok=True)
    elif mood == "hung":
        cached.freeze()
        expected.append("rrdcached does not answer")
    try:
        with mounted(workdir, *flags, expect_log=expected) as daemon:
            name = ipc_name(workdir)
            set_metrics(name, seconds=0.5)  # creates the files
            with users(daemon.path, count=2, seconds=seconds) as traffic:
                client_times = set_metrics(name, seconds=seconds)
                user_times = traffic.times()
            for text in expected:
                daemon.wait_for_log(text)
            return p99(user_times), p99(client_times)
    finally:
        if mood == "full":
            subprocess.run(["umount", database], check=True)
        cached.stop()


def set_metrics(name: str, *, seconds: float) -> list[float]:
    """Set and read metrics of guests for *seconds*; return the time of each request in us."""
    times, end, vmid = [], time.monotonic() + seconds, 100
    value = metric("pve2.3-vm/100") + b"\0"
    with Client(name) as client:
        while time.monotonic() < end:
            vmid = vmid % 20 + 100
            start = time.perf_counter_ns()
            client.set_key(f"rrd/pve2.3-vm/{vmid}", value)
            client.members()
            times.append((time.perf_counter_ns() - start) / 1000)
            time.sleep(0.001)  # some hundred metrics a second, as in a cluster of 5,000 guests
    return times


# Commands


def command(workdir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "pmxcfs", *arguments, "--ipc-name", ipc_name(workdir)]
    return subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT, check=False)


def command_of(user: str, workdir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as another user, who may be unable to read this checkout."""
    account = pwd.getpwnam(user)
    program = (
        "import os, sys\nfrom pmxcfs.cli import main, query\nos.setgroups([])\n"
        f"os.setgid({account.pw_gid})\nos.setuid({account.pw_uid})\n"
        "sys.exit(main.main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", program, *arguments, "--ipc-name", ipc_name(workdir)]
    return subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT, check=False)


def output(workdir: Path, *arguments: str) -> str:
    result = command(workdir, *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_the_questions(tmp_path: Path) -> None:
    with mounted(tmp_path) as daemon:
        home = daemon.path / "nodes" / "node1" / "lxc"
        home.mkdir(parents=True)
        (home / "100.conf").write_text("hostname: web\ncores: 2\n")
        assert output(tmp_path, "ipc", "members") == "node1 is not in a cluster\n"
        assert json.loads(output(tmp_path, "ipc", "members", "--json"))["nodename"] == "node1"
        rows = output(tmp_path, "ipc", "guests").splitlines()
        assert [row.split()[:3] for row in rows] == [
            ["VMID", "TYPE", "NODE"],
            ["100", "lxc", "node1"],
        ]
        assert output(tmp_path, "ipc", "config", "nodes/node1/lxc/100.conf").endswith("cores: 2\n")
        assert output(tmp_path, "ipc", "property", "hostname", "cores") == (
            "100 hostname: web\n100 cores: 2\n"
        )
        assert output(tmp_path, "ipc", "property", "cores", "--vmid", "100", "--json") == (
            '{\n"100":{"cores": "2"}\n}\n'
        )
        assert output(tmp_path, "ipc", "set", "key", "value") == ""
        assert output(tmp_path, "ipc", "get", "key") == "value"
        assert output(tmp_path, "ipc", "get", "key", "--json") == '"value"\n'
        assert "node1: key" in output(tmp_path, "ipc", "version")
        assert output(tmp_path, "ipc", "rrd") == "no metrics\n"
        assert output(tmp_path, "ipc", "property", "nonesuch") == "no such properties\n"
        assert output(tmp_path, "ipc", "clusterlog", "--user", "x") == (
            "no entries in the cluster log\n"
        )


def test_writing_and_reading_the_cluster_log(tmp_path: Path) -> None:
    with mounted(tmp_path):
        output(tmp_path, "ipc", "log", "hello", "--priority", "err", "--user", "me@pve")
        lines = output(tmp_path, "ipc", "clusterlog").splitlines()
        assert lines[0].endswith("info root: starting cluster log")
        assert lines[1].endswith("err me@pve: hello")
        own = json.loads(output(tmp_path, "ipc", "clusterlog", "--user", "me@pve", "--json"))
        assert [entry["msg"] for entry in own["data"]] == ["hello"]


def test_a_refused_question_is_one_line(tmp_path: Path) -> None:
    with mounted(tmp_path):
        result = command(tmp_path, "ipc", "config", "missing")
        assert (result.returncode, result.stdout) == (1, "")
        assert (
            "the file 'missing': the daemon refused the request: No such file or directory: "
            in result.stderr
        )
        for question, what in (
            (["property", "name", "--vmid", "5000000000"], "the vmid"),
            (["property", *["name"] * 256], "the number of properties"),
            (["clusterlog", "-n", "5000000000"], "the number of entries"),
        ):
            result = command(tmp_path, "ipc", *question)
            assert (result.returncode, result.stdout) == (1, "")
            assert what in result.stderr
            assert result.stderr.endswith("is out of range\n")
    result = command(tmp_path, "ipc", "members")
    assert (result.returncode, result.stdout) == (3, "")
    assert "is it running?" in result.stderr


def test_status(tmp_path: Path) -> None:
    with mounted(tmp_path, "--test-control") as daemon:
        (daemon.path / "priv" / "lock").mkdir(parents=True)
        (daemon.path / "priv" / "lock" / "held").mkdir()
        text = output(tmp_path, "status")
        assert text.startswith("state     healthy\n")
        assert "priv/lock/held for" in text
        daemon.control("quorum", on=False)
        result = command(tmp_path, "status")
        assert result.returncode == 2
        assert result.stdout.startswith(
            "state     failed: no quorum, so it is read-only\nto do     "
        )
        explained = command(tmp_path, "status", "--explain").stdout
        assert "\nmeans     No more than half of the votes" in explained
        told: dict[str, Any] = json.loads(command(tmp_path, "status", "--json").stdout)
        assert told["running"]
        assert not told["quorate"]
        assert told["pid"] == daemon.process.pid
        assert told["content"]["entries"] == 3
        assert list(told["locks"]) == ["priv/lock/held"]
        daemon.control("quorum", on=True)
        assert command(tmp_path, "status").returncode == 0
    result = command(tmp_path, "status")
    assert (result.returncode, result.stderr) == (3, "")
    assert result.stdout.startswith("state     unknown: no pmxcfs listens as ")
    assert "\nto do     start it: systemctl start pmxcfs" in result.stdout


def test_status_of_a_daemon_that_hangs(tmp_path: Path) -> None:
    with mounted(tmp_path) as daemon:
        daemon.process.send_signal(signal.SIGSTOP)
        try:
            result = command(tmp_path, "status")
        finally:
            daemon.process.send_signal(signal.SIGCONT)
        assert result.returncode == 3
        assert "does not answer" in result.stdout


def test_status_for_others_than_root(tmp_path: Path) -> None:
    with mounted(tmp_path) as daemon:
        daemon.expect_log("refused a connection")
        (daemon.path / "priv" / "lock" / "held").mkdir(parents=True)
        for user, status, text in (
            ("www-data", 0, "state     healthy\n"),
            ("nobody", 3, "state     unknown: permission denied"),
        ):
            result = command_of(user, tmp_path, "status")
            assert (result.returncode, result.stderr) == (status, "")
            assert result.stdout.startswith(text)
            assert "held" not in result.stdout
