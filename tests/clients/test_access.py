"""Access rules: which users may connect, and which requests they may send; with real clients."""

import errno
from pathlib import Path

import pytest

from pmxcfs.ipc.requests import Caller, Requests
from pmxcfs.ipc.server import Gate
from tests.clients.serving import GROUP, CClient, recorded_requests, served
from tests.conftest import ExpectLog

NOBODY = 65534
KEY = b"key".ljust(256, b"\0")
SECRET = b"priv/secret.cfg\0"
LOG = b"\6\2\2u\0t\0text\0"


def identity(uid: int, gid: int, *groups: int) -> list[str]:
    supplementary = f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups"
    return ["setpriv", f"--reuid={uid}", f"--regid={gid}", supplementary]


@pytest.fixture
def requests(tmp_path: Path) -> Requests:
    made = recorded_requests(tmp_path)
    tree = made._tree
    priv = tree.find("priv") or tree.create(tree.root, "priv", 4, writer=0, mtime=0)
    secret = tree.create(priv, "secret.cfg", 8, writer=0, mtime=0)
    tree.write(secret, 0, b"secret\n", truncate=True, writer=0, mtime=0)
    return made


def test_root_may_do_everything(
    c_client: CClient, requests: Requests, service: str, tmp_path: Path
) -> None:
    with served(requests, tmp_path, name=service):
        assert c_client.ask(service, 6, SECRET) == (0, b"secret\n")
        assert c_client.ask(service, 4, KEY + b"value") == (0, b"")
        assert c_client.ask(service, 5, KEY + bytes(256)) == (0, b"value")
        assert c_client.ask(service, 7, LOG) == (0, b"")


@pytest.mark.parametrize("uid", [GROUP, NOBODY, 0])
def test_a_member_of_the_group_may_read(
    uid: int, c_client: CClient, requests: Requests, service: str, tmp_path: Path
) -> None:
    reader = identity(uid, GROUP)
    with served(requests, tmp_path, name=service):
        error, members = c_client.ask(service, 2, identity=reader)
        assert (error, b"node2" in members) == (0, True)
        public = b"nodes/node2/qemu-server/100.conf\0"
        assert c_client.ask(service, 6, public, identity=reader)[0] == 0
        for number, payload in (
            (4, KEY + b"value"),
            (7, LOG),
            (6, SECRET),
            (6, b"//priv//secret.cfg\0"),
            (6, b"priv/missing\0"),
            (6, b"nodes//node1///priv/x\0"),
        ):
            answer = c_client.ask(service, number, payload, identity=reader)
            assert answer == (-errno.EPERM, b""), (number, payload)
        assert c_client.ask(service, 5, KEY + bytes(256)) == (-errno.ENOENT, b"")


@pytest.mark.parametrize(
    "outsider",
    [identity(NOBODY, NOBODY), identity(NOBODY, NOBODY, GROUP), identity(0, NOBODY)],
    ids=["nobody", "supplementary member", "root of another group"],
)
def test_others_are_refused_and_logged(
    outsider: list[str],
    c_client: CClient,
    requests: Requests,
    service: str,
    tmp_path: Path,
    expect_log: ExpectLog,
) -> None:
    expect_log("refused a connection of uid")
    with served(requests, tmp_path, name=service) as server:
        with pytest.raises(PermissionError):
            c_client.ask(service, 2, identity=outsider)
        assert c_client.ask(service, 2)[0] == 0
        assert server.connections in (
            0,
            1,
        )  # the server may not have noticed the end of the last client


def test_connections_are_reserved_for_root(
    c_client: CClient, requests: Requests, service: str, tmp_path: Path
) -> None:
    with served(requests, tmp_path, name=service) as server:
        readers = identity(GROUP, GROUP)
        holder = c_client.start(service, "hold", "1000", ready=False, identity=readers)
        assert holder.stdout is not None
        held = int(holder.stdout.readline())
        assert held > 100
        assert c_client.ask(service, 2)[0] == 0
        with pytest.raises(OSError, match="EMFILE"):
            c_client.ask(service, 2, identity=readers)
        assert server.connections >= held
        holder.kill()
        holder.communicate()


def test_refusals_do_not_fill_the_log(
    caplog: pytest.LogCaptureFixture, expect_log: ExpectLog
) -> None:
    expect_log("refused a connection of uid 1, gid 2, pid 3")
    now = 100.0
    gate = Gate(gid=GROUP, clock=lambda: now)
    assert [gate.admit(1, 2, 3) for _ in range(100)] == [errno.EACCES] * 100
    now = 200.0
    assert gate.admit(1, 2, 3) == errno.EACCES
    assert [record.getMessage() for record in caplog.records] == [
        "refused a connection of uid 1, gid 2, pid 3",
        "refused a connection of uid 1, gid 2, pid 3 (99 times since the last such line)",
    ]


def test_the_gate_grants_write_access_to_root_alone() -> None:
    gate = Gate(gid=GROUP)
    assert gate.admit(0, 0, 7) == Caller(7, may_write=True)
    assert gate.admit(0, GROUP, 7) == Caller(7, may_write=False)
    assert gate.admit(1000, GROUP, 7) == Caller(7, may_write=False)
