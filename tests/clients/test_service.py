"""The libqb server: message sizes, errors, stopping, leftovers, and misbehaving clients."""

import errno
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pmxcfs.errors import IpcError, StartError
from pmxcfs.ipc._qb import Server
from pmxcfs.ipc._qbclient import REQUEST_HEADER, RESPONSE_HEADER, Client
from pmxcfs.ipc.server import SHARED_MEMORY, IpcServer, remove_leftovers
from tests.clients.serving import GROUP, CClient, recorded_requests, served

BUFFER = 1 << 20
STOP_DEADLINE = 3.0  # seconds that the contract allows; milliseconds on an idle machine
TIMEOUT = 30.0


@contextmanager
def serving(name: str, answer: Callable[[Any, int, bytes], bytes | int]) -> Iterator[Server]:
    """Run a server that admits every client."""
    server = Server(name, admit=lambda *who: who, answer=answer)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()
        server.close()


def echo(_caller: object, _number: int, payload: bytes) -> bytes:
    return payload


def rings_of(pid: int) -> list[str]:
    return [path.name for path in SHARED_MEMORY.glob(f"qb-{pid}-*")]


def await_true(condition: Callable[[], bool]) -> None:
    """Wait until *condition* holds, for at most TIMEOUT; poll it."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# Sizes


@pytest.mark.parametrize("size", [0, 1, 4095, 65536, BUFFER - RESPONSE_HEADER])
def test_contents_of_all_sizes_pass(size: int, service: str) -> None:
    payload = random.Random(size).randbytes(size)
    with serving(service, echo), Client(service) as client:
        for _ in range(3):
            assert client.ask(1, payload) == payload


def test_an_answer_that_does_not_fit_is_refused_and_others_are_sent(service: str) -> None:
    with serving(service, lambda _c, number, _p: bytes(number)), Client(service) as client:
        most = BUFFER - RESPONSE_HEADER
        assert len(client.ask(most, b"")) == most
        for size in (most + 1, BUFFER, 5 * BUFFER):
            with pytest.raises(IpcError) as refused:
                client.ask(size, b"")
            assert refused.value.errno == errno.EFBIG
        assert client.ask(3, b"") == bytes(3)


def test_the_client_does_not_send_a_request_that_does_not_fit(service: str) -> None:
    with serving(service, echo), Client(service) as client:
        with pytest.raises(IpcError) as refused:
            client.ask(1, bytes(BUFFER - REQUEST_HEADER + 1))
        assert refused.value.errno == errno.EFBIG


def test_a_too_large_buffer_is_refused(service: str) -> None:
    with serving(service, echo):
        with Client(service, buffer_size=4 * BUFFER) as client:
            assert client.ask(1, b"x") == b"x"
        with pytest.raises(IpcError) as refused:
            Client(service, buffer_size=64 * BUFFER)
        assert refused.value.errno == errno.EFBIG


# Errors


def test_errnos_reach_the_client(service: str) -> None:
    with serving(service, lambda _c, number, _p: number), Client(service) as client:
        for code in (errno.ENOENT, errno.EPERM, errno.ECHRNG):
            with pytest.raises(IpcError) as refused:
                client.ask(code, b"")
            assert refused.value.errno == code


def test_run_raises_an_exception_and_clients_stay_connected(service: str) -> None:
    def divide(_caller: object, number: int, _payload: bytes) -> bytes:
        return bytes(10 // number)

    server = Server(service, admit=lambda *who: who, answer=divide)
    raised: list[BaseException] = []

    def run() -> None:
        while True:
            try:
                return server.run()
            except ZeroDivisionError as error:
                raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    with Client(service) as client:
        with pytest.raises(IpcError) as refused:
            client.ask(0, b"")
        assert refused.value.errno == errno.EIO
        assert client.ask(5, b"") == bytes(2)
    server.stop()
    thread.join()
    server.close()
    assert [str(error) for error in raised] == ["integer division or modulo by zero"]


def test_an_exception_of_admit_refuses_the_client(service: str) -> None:
    def admit(*_who: int) -> object:
        raise LookupError("who")

    server = Server(service, admit=admit, answer=echo)
    raised: list[str] = []

    def run() -> None:
        try:
            server.run()
        except LookupError as error:
            raised.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    with pytest.raises(IpcError) as refused:
        Client(service)
    assert refused.value.errno == errno.EIO
    thread.join()
    server.close()
    assert raised == ["who"]


def test_a_name_in_use_is_refused(service: str, tmp_path: Path) -> None:
    with serving(service, echo):
        with pytest.raises(IpcError):
            Server(service, admit=lambda *who: who, answer=echo)
        second = IpcServer(service, gid=GROUP, flag=tmp_path / "flag")
        with pytest.raises(StartError, match="--ipc-name"):
            second.start(recorded_requests(tmp_path))
        second.close()
    with pytest.raises(IpcError) as refused:
        Client(service)
    assert refused.value.errno == errno.ECONNREFUSED


# Stopping


def test_a_stop_is_quick_and_complete(service: str) -> None:
    clients = []
    with serving(service, echo) as server:
        clients = [Client(service) for _ in range(20)]
        await_true(lambda: server.connections == 20)
        assert len(rings_of(os.getpid())) >= 20
        start = time.monotonic()
        server.stop()
        await_true(lambda: server.connections == 0)
        assert time.monotonic() - start < STOP_DEADLINE
    assert not rings_of(os.getpid())
    for client in clients:
        with pytest.raises(IpcError) as refused:
            client.ask(1, b"")
        assert refused.value.errno == errno.ENOTCONN
        client.close()


def test_close_and_stop_can_be_repeated(service: str) -> None:
    server = Server(service, admit=lambda *who: who, answer=echo)
    server.stop()
    server.run()
    server.close()
    server.close()
    server.stop()
    with pytest.raises(ValueError, match="closed"):
        server.run()
    client_error = pytest.raises(IpcError)
    with client_error:
        Client(service)


def test_a_closed_client_raises_value_error(service: str) -> None:
    with serving(service, echo):
        client = Client(service)
        client.close()
        client.close()
        with pytest.raises(ValueError, match="closed"):
            client.ask(1, b"")


def test_a_late_answer_is_not_taken_for_the_next_one(service: str) -> None:
    may_answer = threading.Event()

    def slow(_caller: object, _number: int, payload: bytes) -> bytes:
        may_answer.wait(TIMEOUT)
        return payload

    with serving(service, slow), Client(service) as client:
        with pytest.raises(IpcError) as caught:
            client.ask(1, b"first", timeout_ms=50)
        assert caught.value.errno == errno.ETIMEDOUT
        may_answer.set()
        with pytest.raises(ValueError, match="closed"):
            client.ask(1, b"second")


def test_the_restart_flag_exists_while_no_server_answers(service: str, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    with served(recorded_requests(tmp_path), tmp_path, name=service):
        assert not flag.exists()
    assert flag.stat().st_mode & 0o777 == 0o640
    assert flag.stat().st_gid == GROUP
    with served(recorded_requests(tmp_path), tmp_path, name=service):
        assert not flag.exists()


def test_leftovers_of_dead_servers_are_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    ours, alive = os.getpid(), os.getppid()
    for pid, name in ((dead.pid, "mine"), (ours, "mine"), (alive, "mine"), (dead.pid, "other")):
        ring = tmp_path / f"qb-{pid}-7-8-{name}"
        ring.mkdir()
        (ring / f"qb-request-{name}-header").touch()
    (tmp_path / "qb-junk-1-1-x").mkdir()
    remove_leftovers("mine", below=tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted(["qb-junk-1-1-x", f"qb-{alive}-7-8-mine", f"qb-{dead.pid}-7-8-other"])


def test_a_directory_that_goes_meanwhile_keeps_no_server_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / f"qb-{dead.pid}-7-8-other").mkdir()
    glob = Path.glob

    def gone(self: Path, pattern: str) -> Iterator[Path]:
        if self != tmp_path:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        return glob(self, pattern)

    monkeypatch.setattr(Path, "glob", gone)
    remove_leftovers("mine", below=tmp_path)
    assert len(os.listdir(tmp_path)) == 1


# Clients that misbehave


def test_a_killed_client_leaves_no_shared_memory(c_client: CClient, service: str) -> None:
    with serving(service, echo) as server:
        victims = [c_client.start(service, "half") for _ in range(10)]
        await_true(lambda: server.connections == 10)
        for victim in victims:
            end(victim)
        await_true(lambda: server.connections == 0)
        await_true(lambda: not rings_of(os.getpid()))


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize("more", [1, 4, 500, BUFFER - REQUEST_HEADER, BUFFER, 1 << 30])
def test_a_request_that_claims_more_than_it_has_is_refused(
    more: int, c_client: CClient, service: str
) -> None:
    with serving(service, echo):
        assert c_client.ask(service, 1, b"text") == (0, b"text")
        assert c_client.ask(service, 1, b"text", more=more) == (-errno.EINVAL, b"")


def test_valid_requests_pass_at_every_place_of_the_ring(service: str) -> None:
    chance = random.Random(1)
    with serving(service, echo), Client(service, buffer_size=4096) as client:
        for _ in range(2000):
            content = chance.randbytes(chance.randrange(1500))
            assert client.ask(1, content) == content


def test_a_client_that_reads_no_answers_is_disconnected(c_client: CClient, service: str) -> None:
    with serving(service, lambda *_: bytes(1000)) as server:
        reader = c_client.start(service, "unread", "1")
        with Client(service) as client:
            assert reader.wait(TIMEOUT) == 0
            assert client.ask(1, b"") == bytes(1000)
        reader.communicate()
        await_true(lambda: server.connections == 0)


def test_a_peer_that_does_not_authenticate_is_disconnected(c_client: CClient, service: str) -> None:
    with serving(service, echo):
        silent = [c_client.start(service, "silent") for _ in range(3)]
        with Client(service) as client:
            assert client.ask(1, b"x") == b"x"
        for peer in silent:
            assert peer.wait(TIMEOUT) == 0
            peer.communicate()


def test_a_client_that_announces_no_messages_delays_no_other(
    c_client: CClient, service: str
) -> None:
    with serving(service, echo), Client(service) as client:
        mute = c_client.start(service, "mute")
        for _ in range(100):
            assert client.ask(1, b"x", timeout_ms=10_000) == b"x"
        end(mute)


def test_a_client_that_announces_messages_without_sending_is_disconnected(
    c_client: CClient, service: str
) -> None:
    with serving(service, echo) as server, Client(service) as client:
        noisy = c_client.start(service, "noisy")
        assert noisy.wait(TIMEOUT) == 0
        noisy.communicate()
        await_true(lambda: server.connections == 1)
        assert client.ask(1, b"x") == b"x"


def test_peers_without_authentication_do_not_use_up_the_descriptors(service: str) -> None:
    import socket

    before = len(os.listdir("/proc/self/fd"))
    with serving(service, echo), Client(service) as client:
        sockets = []
        for _ in range(200):
            sockets.append(socket.socket(socket.AF_UNIX))
            sockets[-1].connect(f"\0{service}".ljust(108, "\0"))
        assert client.ask(1, b"x") == b"x"
        held = len(os.listdir("/proc/self/fd")) - before
        assert held < 200 + 64 + 20
        for one in sockets:
            one.close()


def test_random_requests_get_answers_and_other_clients_are_served(
    c_client: CClient, service: str, tmp_path: Path
) -> None:
    with served(recorded_requests(tmp_path), tmp_path, name=service) as server:
        garbage = [c_client.start(service, "garbage", str(seed)) for seed in range(4)]
        with Client(service) as client:
            for _ in range(300):
                assert b"node2" in client.ask(2, b"")
        assert server.connections >= 1
        for process in garbage:
            end(process)
        await_true(lambda: server.connections == 0)
    assert not rings_of(os.getpid())
