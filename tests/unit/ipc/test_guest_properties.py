"""Queries of guests' properties: which lines count, and that each change invalidates the cache."""

import json
import threading
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmxcfs._core import Tree
from pmxcfs.ipc import guest_properties as properties
from pmxcfs.ipc.guest_properties import Properties, find_property, own_part
from pmxcfs.messages import Create, Delete, Mkdir, Mutation, Rename, Write
from pmxcfs.tree.apply import apply
from pmxcfs.tree.guests import Guests, parse_guest_path

HOME = "nodes/n1/qemu-server"


class Node:
    """A tree with guests, and queries of their properties."""

    def __init__(self) -> None:
        self.tree, self.guests = Tree(), Guests()
        self.lock = threading.RLock()
        self.breaths = 0
        self.properties = Properties(self.tree, self.guests, lock=self.lock)
        for path in ("nodes", "nodes/n1", HOME, "nodes/n1/lxc", "other"):
            self.do(Mkdir(path))

    def do(self, mutation: Mutation) -> None:
        change = apply(self.tree, self.guests, mutation, writer=0, mtime=0)
        self.properties.on_change(change.path, change.source or "")

    def put(self, vmid: int, content: bytes, *, home: str = HOME) -> None:
        path = f"{home}/{vmid}.conf"
        if self.tree.find(path) is None:
            self.do(Create(path))
        self.do(Write(path, 0, content, True))

    def breathe(self) -> None:
        self.breaths += 1

    def raw(self, *names: str) -> bytes:
        return self.properties.of_all(names, give_way=self.breathe)

    def all(self, *names: str) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = json.loads(self.raw(*names))
        return found

    def one(self, vmid: int, *names: str) -> bytes:
        guest = self.guests.get(vmid)
        assert guest is not None
        return self.properties.of_guest(guest, names)


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"name: web\n", b"web"),
        (b"name: web", b"web"),
        (b"name:web\n", b"web"),
        (b"name: \t web server \t\r\n", b"web server"),
        (b"cores: 2\nname: web\nmemory: 3\n", b"web"),
        (b"name: a\nname: b\n", b"b"),
        (b"name: a\n[snap]\nname: b\n", b"a"),
        (b"[PENDING]\nname: b\n", b""),
        (b"#name: a\n", b""),
        (b" name: a\n", b""),
        (b"name2: a\nmyname: b\n", b""),
        (b"name : a\n", b""),
        (b"name:\n", b""),
        (b"name: a: b\n", b"a: b"),
        (b"", b""),
        (b"name", b""),
        (b"x: [\nname: a\n", b"a"),
    ],
)
def test_which_line_counts(content: bytes, value: bytes) -> None:
    assert find_property(own_part(content), b"name") == value


@given(st.lists(st.sampled_from([b"name: a", b"name:b ", b"tags: c", b"[x]", b"", b"#", b"nam"])))
def test_find_property_agrees_with_a_parser_of_lines(lines: list[bytes]) -> None:
    value = b""
    for line in lines:
        if line.startswith(b"["):
            break
        name, colon, rest = line.partition(b":")
        if colon and name == b"name":
            value = rest.strip()
    assert find_property(own_part(b"\n".join(lines)), b"name") == value


def test_the_form_of_the_answer(node: Node) -> None:
    node.put(100, b"name: web\ncores: 2\n")
    node.put(101, b"cores: 1\n")
    assert node.one(100, "name", "cores") == b'{\n"100":{"name": "web","cores": "2"}\n}\n'
    assert node.one(100, "cores", "name") == b'{\n"100":{"cores": "2","name": "web"}\n}\n'
    assert node.one(100, "missing") == b"{\n\n}\n"
    assert node.raw("name") == b'{\n"100":{"name": "web"}\n}\n'
    assert node.all("name", "cores") == {
        "100": {"name": "web", "cores": "2"},
        "101": {"cores": "1"},
    }
    assert node.raw("missing") == b"{\n\n}\n"


def test_an_empty_file_has_no_properties(node: Node) -> None:
    node.put(100, b"")
    assert json.loads(node.one(100, "name")) == {}
    assert node.all("name") == {}


def test_any_value_becomes_valid_json(node: Node) -> None:
    node.put(100, b'name: "q" \\ \x01\x7f\t\xc3\xa4\xff\n')
    assert node.all("name") == {"100": {"name": '"q" \\ \x01\x7f\tä\ufffd'}}


def test_each_change_invalidates_the_cache(node: Node) -> None:
    node.put(100, b"name: a\n")
    node.put(200, b"name: z\n", home="nodes/n1/lxc")
    assert node.all("name") == {"100": {"name": "a"}, "200": {"name": "z"}}
    node.put(100, b"name: b\n")
    assert node.all("name")["100"] == {"name": "b"}
    node.put(100, b"memory: 1\n")
    assert "100" not in node.all("name")
    node.put(100, b"name: c\n")
    node.do(Rename(f"{HOME}/100.conf", f"{HOME}/101.conf"))
    assert node.all("name") == {"101": {"name": "c"}, "200": {"name": "z"}}
    node.do(Delete(f"{HOME}/101.conf"))
    assert node.all("name") == {"200": {"name": "z"}}
    node.do(Rename("nodes/n1/lxc/200.conf", "other/200.conf"))
    assert node.all("name") == {}


def test_a_reload_invalidates_the_cache(node: Node) -> None:
    node.put(100, b"name: a\n")
    assert node.all("name") == {"100": {"name": "a"}}
    entry = node.tree.find(f"{HOME}/100.conf")
    assert entry is not None
    node.tree.write(entry, 0, b"name: b\n", truncate=True, writer=0, mtime=0)
    node.properties.on_reload()
    assert node.all("name") == {"100": {"name": "b"}}


def test_unchanged_files_are_read_once(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []
    real = own_part

    def recording(content: bytes) -> bytes:
        read.append(content)
        return real(content)

    monkeypatch.setattr(properties, "own_part", recording)
    for vmid in range(100, 400):
        node.put(vmid, b"name: %d\n" % vmid)
    first = node.raw("name")
    assert len(read) == 300
    assert node.raw("name") is first
    assert len(read) == 300
    node.put(123, b"name: changed\n")
    assert node.raw("name") != first
    assert read[300:] == [b"name: changed\n"]
    assert node.breaths >= 300 // properties.READ_AT_ONCE


def test_a_query_gives_way_and_sees_changes_made_meanwhile(node: Node) -> None:
    for vmid in range(100, 400):
        node.put(vmid, b"name: old\n")

    def change_all() -> None:
        assert node.lock.acquire(blocking=False)
        node.lock.release()
        node.breaths += 1
        if node.breaths == 2:
            for vmid in range(100, 400):
                node.put(vmid, b"name: new\n")

    answer = json.loads(node.properties.of_all(["name"], give_way=change_all))
    assert {guest["name"] for guest in answer.values()} == {"new"}
    assert len(answer) == 300


def test_the_number_of_cached_queries_is_limited(node: Node) -> None:
    node.put(100, b"name: a\n")
    for number in range(100):
        node.all(f"x{number}", "name")
    assert len(node.properties._queries) == properties.KEPT_QUERIES
    assert node.all("x0", "name") == {"100": {"name": "a"}}


CONTENTS = [b"name: a\n", b"name: b\ntags: t\n", b"[x]\nname: c\n", b""]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "delete", "rename", "ask"]),
            st.integers(100, 104),
            st.integers(100, 104),
            st.sampled_from(CONTENTS),
        ),
        max_size=30,
    )
)
def test_the_cache_agrees_with_a_fresh_query(
    steps: Sequence[tuple[str, int, int, bytes]],
) -> None:
    node = Node()
    for what, vmid, other, content in steps:
        path, target = f"{HOME}/{vmid}.conf", f"{HOME}/{other}.conf"
        if what == "put":
            node.put(vmid, content)
        elif what == "delete" and node.tree.find(path):
            node.do(Delete(path))
        elif what == "rename" and vmid != other and node.tree.find(path):
            node.do(Rename(path, target))
        elif what == "ask":
            node.all("name")
    fresh = Properties(node.tree, node.guests, lock=node.lock)
    expected = json.loads(fresh.of_all(["name"], give_way=node.breathe))
    assert node.all("name") == expected
    registered = {guest.vmid for guest in node.guests}
    assert {int(vmid) for vmid in expected} <= registered
    assert all(parse_guest_path(f"{HOME}/{vmid}.conf") for vmid in registered)
