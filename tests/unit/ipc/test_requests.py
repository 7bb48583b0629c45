"""IPC requests without libqb: answers, invalid payloads, and access rules."""

import errno
import json
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmxcfs._core import Tree
from pmxcfs.errors import NotFound, PmxcfsError
from pmxcfs.ipc import requests
from pmxcfs.ipc.guest_properties import Properties
from pmxcfs.ipc.requests import TABLE, Caller, Number, Requests
from pmxcfs.messages import Create, LogEntry, Mkdir, SetKey, Write
from pmxcfs.status.counters import Status
from pmxcfs.status.files import status_files
from pmxcfs.tree.apply import apply
from pmxcfs.tree.guests import Guests

ROOT = Caller(100, may_write=True)
READER = Caller(200, may_write=False)
FILES = {
    "nodes/n1/qemu-server/100.conf": b"name: web\n",
    "user.cfg": b"user\n",
    "empty.cfg": b"",
    "priv/token.cfg": b"root@pam!a=secret\nroot@pam!b=other\n",
    "priv/shadow.cfg": b"hidden\n",
}


class Saves:
    """Saves of which the first runs, the second has succeeded, and the third has failed."""

    def begin(self) -> int:
        return 7

    def outcome(self, number: int) -> str | None:
        if not 1 <= number <= 3:
            raise NotFound("no such save")
        return (None, "", "the disk is full")[number - 1]


class Node:
    """A node that answers requests."""

    def __init__(self) -> None:
        tree, guests = Tree(), Guests()
        for path in ("nodes", "nodes/n1", "nodes/n1/qemu-server", "nodes/n1/priv", "priv"):
            apply(tree, guests, Mkdir(path), writer=0, mtime=0)
        for path, content in FILES.items():
            apply(tree, guests, Create(path), writer=0, mtime=0)
            apply(tree, guests, Write(path, 0, content, True), writer=0, mtime=0)
        self.status = Status("n1", guests, start_time=1000)
        self.published: list[Any] = []
        self.now = 1000.0
        self.lock = lock = threading.RLock()
        self.saves = Saves()
        self.requests = Requests(
            tree,
            guests,
            self.status,
            status_files(self.status, handed=lambda: 0, monotonic=lambda: self.now),
            Properties(tree, guests, lock=lock),
            lock=lock,
            clock=lambda: int(self.now),
            monotonic=lambda: self.now,
            give_way=lambda: None,
            publish=self.published.append,
            report=lambda: {"problems": ["ä"], "locks": {"priv/lock/a": 1.0}},
            saves=self.saves,
        )

    def ask(self, number: int, payload: bytes = b"", *, caller: Caller = ROOT) -> bytes | int:
        """Return the answer, or the errno."""
        try:
            return self.requests.answer(caller, number, payload)
        except PmxcfsError as error:
            return error.errno


@pytest.fixture
def node() -> Node:
    return Node()


def name(text: str) -> bytes:
    return text.encode().ljust(256, b"\0")


def logged(
    priority: int = 6, *, ident: bytes = b"u\0", tag: bytes = b"t\0", message: bytes = b"m\0"
) -> bytes:
    return struct.pack("BBB", priority, len(ident), len(tag)) + ident + tag + message


@pytest.mark.parametrize("number", [-3, -1, 0, 9, 14, 99, 1 << 30])
def test_unknown_requests(number: int, node: Node) -> None:
    assert node.ask(number) == errno.ECHRNG


@pytest.mark.parametrize("number", [1, 2, 3, 10])
def test_requests_for_status_files_take_no_payload(number: int, node: Node) -> None:
    answer = node.ask(number)
    assert isinstance(answer, bytes)
    assert node.ask(number, b"\0") == errno.EINVAL
    assert node.ask(number) is answer  # the same object, as no file has changed
    assert node.ask(number, caller=READER) is answer


def test_metrics_end_with_nul(node: Node) -> None:
    assert node.ask(10) == b"\0"
    assert node.ask(4, name("rrd/pve2-node/n1") + b"1:2:1000:3\0") == b""
    assert node.ask(10) == b"pve2-node/n1:1:2:1000:3\n\0"
    node.now += 301
    assert node.ask(10) == b"\0"


def test_keys(node: Node) -> None:
    assert node.ask(4, name("k") + b"value") == b""
    for own in ("", "n1"):
        assert node.ask(5, name("k") + name(own)) == b"value"
    assert node.ask(5, name("k") + name("n2")) == errno.ENOENT
    assert node.ask(5, name("x") + name("")) == errno.ENOENT
    assert node.ask(4, name("k")) == b""
    assert node.ask(5, name("k") + name("")) == errno.ENOENT
    assert node.published == [SetKey("k", b"value"), SetKey("k", b"")]


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (b"", errno.EINVAL),
        (b"k\0", errno.EINVAL),
        (b"k" * 256 + b"value", errno.EINVAL),
        (name("") + b"value", errno.EINVAL),
        (name("k") + bytes(32769), errno.EFBIG),
    ],
)
def test_keys_that_are_refused_are_not_published(payload: bytes, error: int, node: Node) -> None:
    assert node.ask(4, payload) == error
    assert not node.published


@pytest.mark.parametrize("payload", [b"", name("k"), name("k") + b"n1\0", name("k") * 3])
def test_a_request_for_a_key_has_two_names(payload: bytes, node: Node) -> None:
    assert node.ask(5, payload) == errno.EINVAL


@pytest.mark.parametrize("prefix", ["", "/", "///"])
def test_config(prefix: str, node: Node) -> None:
    for path, content in FILES.items():
        assert node.ask(6, f"{prefix}{path}\0".encode()) == content


@pytest.mark.parametrize(
    "path", ["", "/", "nodes", "missing", ".version", ".vmlist", "local", "..", "user.cfg/x"]
)
def test_config_of_a_path_without_a_file(path: str, node: Node) -> None:
    assert node.ask(6, f"{path}\0".encode()) == errno.ENOENT


def test_a_path_ends_with_nul(node: Node) -> None:
    assert node.ask(6, b"") == errno.EINVAL
    assert node.ask(6, b"user.cfg") == errno.EINVAL
    assert node.ask(6, b"user.cfg\0garbage\0") == b"user\n"


def test_requests_that_readers_may_send(node: Node) -> None:
    allowed = {
        1: b"",
        2: b"",
        3: b"",
        5: name("k") + name(""),
        6: b"user.cfg\0",
        8: bytes(17),
        10: b"",
        11: b"\0\0\0\0name\0",
        12: b"root@pam!a=secret\0",
        13: b"\0\0\0\0\1name\0",
        Number.GET_REPORT: b"",
    }
    node.ask(4, name("k") + b"v")
    for number, payload in allowed.items():
        assert isinstance(node.ask(number, payload, caller=READER), bytes), number
    refused = {4: name("k") + b"v", 7: logged(), Number.SAVE: b""}
    for number, payload in refused.items():
        assert node.ask(number, payload, caller=READER) == errno.EPERM, number
    assert set(allowed) | set(refused) == set(TABLE)


@pytest.mark.parametrize(
    "path", ["priv/shadow.cfg", "priv/missing", "//priv//x", "nodes/n1/priv/x", "nodes//n1/priv"]
)
def test_readers_do_not_learn_whether_a_private_file_exists(path: str, node: Node) -> None:
    assert node.ask(6, f"{path}\0".encode(), caller=READER) == errno.EPERM


def test_log(node: Node) -> None:
    assert node.ask(7, logged(3, ident=b"me\0", tag=b"tag\0", message=b'say "x"\0')) == b""
    (entry,) = node.published
    assert isinstance(entry, LogEntry)
    assert (entry.ident, entry.tag, entry.message) == (b"me", b"tag", b'say \\"x\\"')
    assert (entry.priority, entry.pid, entry.time) == (3, ROOT.pid, 1000)
    answer = node.ask(8, bytes(16) + b"me\0")
    assert isinstance(answer, bytes)
    assert [line["msg"] for line in json.loads(answer)["data"]] == ['say "x"']


def test_an_empty_message_is_logged(node: Node) -> None:
    assert node.ask(7, logged(message=b"\0")) == b""
    assert len(node.published) == 1


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\6\2",
        b"\6\0\0",
        logged(ident=b""),
        logged(tag=b""),
        logged(message=b""),
        logged(ident=b"u"),
        logged(tag=b"t"),
        logged(message=b"m"),
        struct.pack("BBB", 6, 255, 255) + b"u\0t\0m\0",
        struct.pack("BBB", 6, 2, 200) + b"u\0t\0m\0",
    ],
)
def test_log_requests_with_wrong_lengths(payload: bytes, node: Node) -> None:
    assert node.ask(7, payload) == errno.EINVAL
    assert not node.published


def test_a_priority_that_syslog_lacks_is_not_logged(node: Node) -> None:
    assert node.ask(7, logged(8)) == b""
    assert node.ask(7, logged(255)) == b""
    assert not node.published


def test_a_long_log_is_rendered_without_the_lock(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    free: list[bool] = []

    def render(_entries: object, **_selection: object) -> str:
        with ThreadPoolExecutor(1) as other:
            free.append(other.submit(node.lock.acquire, blocking=False).result())
        return ""

    monkeypatch.setattr(requests, "render", render)
    node.ask(8, bytes(16) + b"\0")
    assert free == [True]


def test_a_snapshot_of_the_log_does_not_change(node: Node) -> None:
    node.ask(7, logged(message=b"before\0"))
    entries = node.status.log.snapshot()
    node.ask(7, logged(message=b"after\0"))
    assert [entry.message for entry in entries] == [b"before"]


def test_cluster_log(node: Node) -> None:
    for number in range(60):
        node.now += 1
        node.ask(7, logged(ident=b"even\0" if number % 2 == 0 else b"odd\0"))

    def uids(most: int, user: bytes) -> list[int]:
        answer = node.ask(8, struct.pack("<I12x", most) + user)
        assert isinstance(answer, bytes)
        return [entry["uid"] for entry in json.loads(answer)["data"]]

    assert uids(0, b"\0") == list(range(60, 10, -1))
    assert uids(2, b"\0") == [60, 59]
    assert uids(1000, b"\0") == list(range(60, 0, -1))
    assert uids(2, b"odd\0") == [60, 58]
    assert uids(2, b"nobody\0") == []
    for payload in (b"", bytes(15), bytes(16), bytes(16) + b"user"):
        assert node.ask(8, payload) == errno.EINVAL


@pytest.mark.parametrize(
    ("token", "outcome"),
    [
        (b"root@pam!a=secret\0", b""),
        (b"root@pam!b=other\0", b""),
        (b"root@pam!a=secre\0", errno.ENOENT),
        (b"root@pam!a=secretx\0", errno.ENOENT),
        (b"x\0", errno.ENOENT),
        (b"", errno.EINVAL),
        (b"\0", errno.EINVAL),
        (b"root@pam!a=secret", errno.EINVAL),
        (b"root@pam!a=secret\n\0", errno.EINVAL),
        (b"root@pam!a=secret\nroot@pam!b=other\0", errno.EINVAL),
        (b"root@pam!a=secret\0\0", errno.EINVAL),
    ],
)
def test_tokens(token: bytes, outcome: bytes | int, node: Node) -> None:
    assert node.ask(12, token) == outcome


def vmid(number: int) -> bytes:
    return struct.pack("<I", number)


WEB = b'{\n"100":{"name": "web"}\n}\n'


@pytest.mark.parametrize(
    ("payload", "outcome"),
    [
        (vmid(100) + b"name\0", WEB),
        (vmid(0) + b"name\0", WEB),
        (vmid(0) + b"missing\0", b"{\n\n}\n"),
        (vmid(1) + b"name\0", errno.EINVAL),
        (vmid(99) + b"name\0", errno.EINVAL),
        (vmid(101) + b"name\0", errno.ENOENT),
        (vmid(101) + b"no nul", errno.ENOENT),
        (vmid(100), errno.EINVAL),
        (vmid(100) + b"\0", errno.EINVAL),
        (vmid(100) + b"name", errno.EINVAL),
        (b"\0\0\0", errno.EINVAL),
        (b"", errno.EINVAL),
    ],
)
def test_one_property(payload: bytes, outcome: bytes | int, node: Node) -> None:
    assert node.ask(11, payload) == outcome


@pytest.mark.parametrize(
    ("payload", "outcome"),
    [
        (vmid(100) + b"\1name\0", WEB),
        (vmid(0) + b"\2name\0cores\0", WEB),
        (vmid(0) + b"\2name\0name\0", WEB),
        (vmid(101) + b"\1Name\0", errno.ENOENT),
        (vmid(99) + b"\1name\0", errno.EINVAL),
        (vmid(0), errno.EINVAL),
        (vmid(0) + b"\0", errno.EINVAL),
        (vmid(0) + b"\1name", errno.EINVAL),
        (vmid(0) + b"\2name\0", errno.EINVAL),
        (vmid(0) + b"\1name\0x", errno.EINVAL),
        (vmid(0) + b"\1name\0x\0", errno.EINVAL),
        (vmid(0) + b"\1\0", errno.EINVAL),
        (vmid(0) + b"\1Name\0", errno.EINVAL),
        (vmid(0) + b"\xff" + b"a\0" * 255, b"{\n\n}\n"),
    ],
)
def test_several_properties(payload: bytes, outcome: bytes | int, node: Node) -> None:
    assert node.ask(13, payload) == outcome


def test_the_report_is_json(node: Node) -> None:
    answers = [node.ask(Number.GET_REPORT, caller=caller) for caller in (ROOT, READER)]
    for_root, for_reader = (json.loads(answer) for answer in answers if isinstance(answer, bytes))
    assert for_root == {"problems": ["ä"], "locks": {"priv/lock/a": 1.0}}
    assert for_reader == {"problems": ["ä"], "locks": {}}


def test_a_save_is_begun_and_asked_for(node: Node) -> None:
    assert node.ask(Number.SAVE) == b"\7\0\0\0"
    outcomes = [node.ask(Number.SAVE, struct.pack("<I", number)) for number in (1, 2, 3, 4)]
    assert outcomes == [b"", b"\0", b"\1the disk is full", errno.ENOENT]
    assert node.ask(Number.SAVE, b"\1") == errno.EINVAL
    assert node.ask(Number.SAVE, caller=READER) == errno.EPERM


@given(st.sampled_from(sorted(TABLE)), st.binary(max_size=600))
def test_any_bytes_get_an_answer_or_an_errno(number: int, payload: bytes) -> None:
    for caller in (ROOT, READER):
        answer = Node().ask(number, payload, caller=caller)
        assert isinstance(answer, bytes) or answer in (
            errno.EINVAL,
            errno.ENOENT,
            errno.EPERM,
            errno.EFBIG,
            errno.ENAMETOOLONG,
        )


@pytest.mark.parametrize("make", [lambda: logged(), lambda: vmid(0) + b"\2name\0cores\0"])
def test_a_truncated_request_is_refused(make: Callable[[], bytes], node: Node) -> None:
    whole = make()
    number = 7 if whole.startswith(b"\6") else 13
    assert isinstance(node.ask(number, whole), bytes)
    for size in range(len(whole)):
        assert node.ask(number, whole[:size]) == errno.EINVAL
