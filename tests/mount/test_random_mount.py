"""Random histories on a real mount, compared with a plain model of what a user must see.

The model is a dict from path to file; an open handle keeps the file, not the path. The user of one
node sees the time of publishing only after a restart, so restarts are part of the histories.
"""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.harness import Daemon, mounted

pytestmark = pytest.mark.needs_fuse

MIB = 1 << 20
SKELETON = ("d", "priv", "priv/lock", "nodes", "nodes/a", "nodes/a/lxc", "nodes/a/qemu-server")
GUEST = re.compile(r"nodes/a/(?:lxc|qemu-server)/([1-9][0-9]*)\.conf")
NAMES = ("f", "g", "sub", "vps.mount", "100.conf", "101.conf", "\udcff")
STEPS_TO_RESTART = 8

paths = st.one_of(
    st.builds("{}/{}".format, st.sampled_from(SKELETON), st.sampled_from(NAMES)),
    st.builds("{}/sub/{}".format, st.sampled_from(SKELETON), st.sampled_from(NAMES)),
    st.sampled_from(NAMES),
    st.sampled_from(SKELETON),
)
sizes = st.integers(0, 20)
offsets = st.one_of(sizes, st.just(MIB))
datas = st.binary(min_size=1, max_size=10)
flags = st.sampled_from([os.O_RDWR, os.O_RDWR | os.O_TRUNC, os.O_RDWR | os.O_APPEND])


class Refused(Exception):
    """A refusal of the model; the argument is the name of an errno."""


@dataclass(eq=False)
class Node:
    """A file, or a directory if it has no content."""

    content: bytes | None
    mtime: int | None = None  # None: about now


@dataclass(eq=False)
class Handle:
    """An open file, on the mount and in the model."""

    descriptor: int
    node: Node
    appends: bool
    is_closed: bool = False


def require(code: str, condition: object) -> None:
    """Refuse with *code* unless *condition* holds."""
    if not condition:
        raise Refused(code)


@dataclass
class Model:
    """The state of the mount that a user must see."""

    nodes: dict[str, Node] = field(default_factory=lambda: {"": Node(None)})

    def place(self, path: str) -> None:
        """Check the parent directory of *path*."""
        parent = path.rpartition("/")[0]
        for end in [at for at, letter in enumerate(parent) if letter == "/"] + [len(parent)]:
            node = self.nodes.get(parent[:end])
            require("ENOENT", node)
            require("ENOTDIR", node is None or node.content is None)

    def find(self, path: str) -> Node:
        """Return what is at *path*."""
        self.place(path)
        require("ENOENT", path in self.nodes)
        return self.nodes[path]

    def below(self, path: str) -> list[str]:
        """Return all paths below a directory."""
        return [known for known in self.nodes if known.startswith(f"{path}/")]

    def check_vmid(self, path: str, source: str = "") -> None:
        """Refuse a second configuration of one guest."""
        guest, before = GUEST.fullmatch(path), GUEST.fullmatch(source)
        if guest and not (before and before[1] == guest[1]):
            others = [GUEST.fullmatch(known) for known in self.nodes if known != path]
            require("EEXIST", not any(other and other[1] == guest[1] for other in others))

    def mkdir(self, path: str) -> None:
        self.place(path)
        require("EEXIST", path not in self.nodes)
        require("EEXIST", not GUEST.fullmatch(path))
        self.nodes[path] = Node(None)

    def remove(self, path: str, *, directory: bool) -> None:
        node = self.find(path)
        if directory:
            require("ENOTDIR", node.content is None)
        else:
            require("EISDIR", node.content is not None)
        require("ENOTEMPTY", not self.below(path))
        del self.nodes[path]

    def rename(self, path: str, to: str) -> None:
        self.place(path)
        self.place(to)
        node = self.find(path)
        require("EINVAL", not to.startswith(f"{path}/"))
        require("ENOTEMPTY", not path.startswith(f"{to}/"))
        target = self.nodes.get(to)
        if target is node:
            return
        if target is not None and node.content is None:
            require("ENOTDIR", target.content is None)
        if target is not None and node.content is not None:
            require("EISDIR", target.content is not None)
        require("ENOTEMPTY", not self.below(path))
        self._check_move(path, to, node)
        require("ENOTEMPTY", not self.below(to))
        self.nodes[to] = self.nodes.pop(path)
        node.mtime = None

    def _check_move(self, path: str, to: str, node: Node) -> None:
        if node.content is None:
            require("EEXIST", not GUEST.fullmatch(to))
            require("EACCES", not path.startswith("priv/lock/"))
        else:
            self.check_vmid(to, path)

    def open(self, path: str, flags: int) -> Node:
        self.place(path)
        node = self.nodes.get(path)
        if node is None:
            require("ENOENT", flags & os.O_CREAT)
            self.check_vmid(path)
            node = self.nodes[path] = Node(b"")
        require("EISDIR", node.content is not None)
        require("EEXIST", not flags & os.O_EXCL)
        if flags & os.O_TRUNC:
            node.content, node.mtime = b"", None
        return node

    def truncate(self, path: str, size: int) -> None:
        node = self.find(path)
        require("EISDIR", node.content is not None)
        self.resize(node, size)

    def resize(self, node: Node, size: int) -> None:
        assert node.content is not None
        require("EFBIG", size <= MIB)
        node.content, node.mtime = node.content[:size].ljust(size, b"\0"), None

    def write(self, handle: Handle, offset: int, data: bytes) -> None:
        node = handle.node
        assert node.content is not None
        offset = len(node.content) if handle.appends else offset
        require("EFBIG", offset + len(data) <= MIB)
        before = node.content.ljust(offset, b"\0")
        node.content = before[:offset] + data + before[offset + len(data) :]
        node.mtime = None

    def utime(self, path: str, seconds: int) -> None:
        node = self.find(path)
        is_lock = node.content is None and path.rpartition("/")[0] == "priv/lock"
        require("EACCES", not is_lock)  # made a moment ago, so it is not renewed by the past
        node.mtime = seconds

    def mode(self, path: str) -> int:
        """Return st_mode."""
        private = path.partition("/")[0] == "priv" or re.match(r"nodes/[^/]+/priv(/|$)", path)
        if self.nodes[path].content is None:
            return stat.S_IFDIR | (0o700 if private else 0o755)
        script = 0o100 if path.rpartition("/")[2] == "vps.mount" else 0
        return stat.S_IFREG | script | (0o600 if private else 0o640)


class Server:
    """A daemon that can be restarted."""

    def __init__(self, workdir: Path) -> None:
        self._workdir = workdir
        self._stack = contextlib.ExitStack()
        self.mount = self._start()

    def _start(self) -> Daemon:
        return self._stack.enter_context(mounted(self._workdir, "--test-control", nodename="a"))

    def restart(self) -> None:
        """Stop the daemon, start another on the same database."""
        self._stack.close()
        self.mount = self._start()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()


class Histories(RuleBasedStateMachine):
    """One history, on the mount and in the model."""

    handles: Bundle[Handle] = Bundle("handles")

    server: Server  # set by a subclass

    def __init__(self) -> None:
        super().__init__()
        self.root = self.server.mount.path
        self.model = Model()
        self.open_handles: list[Handle] = []
        self.steps = 0

    @initialize()
    def build(self) -> None:
        for path in SKELETON:
            self.both((self.root / path).mkdir, self.model.mkdir, path)

    def close_all(self) -> None:
        """Close what is open."""
        for handle in self.open_handles:
            os.close(handle.descriptor)
            handle.is_closed = True
        self.open_handles = []

    def teardown(self) -> None:
        self.close_all()
        for path in sorted(self.model.nodes, key=len, reverse=True):
            if path and self.model.nodes[path].content is None:
                (self.root / path).rmdir()
            elif path:
                (self.root / path).unlink()

    def both(self, real: Callable[[], object], model: Callable[..., object], *args: object) -> bool:
        """Run a step on the mount and in the model, assert equal outcomes; return its success."""
        self.steps += 1
        seen = wanted = "success"
        try:
            model(*args)
        except Refused as refusal:
            wanted = refusal.args[0]
        try:
            real()
        except OSError as error:
            seen = errno.errorcode[error.errno or 0]
        assert seen == wanted
        return seen == "success"

    @rule(path=paths)
    def mkdir(self, path: str) -> None:
        self.both((self.root / path).mkdir, self.model.mkdir, path)

    @rule(path=paths, directory=st.booleans())
    def remove(self, path: str, directory: bool) -> None:
        real = (self.root / path).rmdir if directory else (self.root / path).unlink
        self.both(real, lambda: self.model.remove(path, directory=directory))

    @rule(path=paths, to=paths)
    def rename(self, path: str, to: str) -> None:
        self.both(lambda: os.rename(self.root / path, self.root / to), self.model.rename, path, to)
        self.server.mount.wait_until_notified()  # of a mode that follows from the new path

    @rule(path=paths, data=datas)
    def save(self, path: str, data: bytes) -> None:
        """Write a whole file, as a shell does."""

        def model() -> None:
            node = self.model.open(path, os.O_CREAT | os.O_TRUNC)
            node.content = data

        self.both(lambda: (self.root / path).write_bytes(data), model)

    @rule(path=paths, size=st.one_of(sizes, st.sampled_from([MIB, MIB + 1])))
    def truncate(self, path: str, size: int) -> None:
        self.both(lambda: os.truncate(self.root / path, size), self.model.truncate, path, size)

    @rule(path=paths, seconds=st.integers(1, 9))
    def utime(self, path: str, seconds: int) -> None:
        real = (self.root / path, (seconds, seconds))
        self.both(lambda: os.utime(*real), self.model.utime, path, seconds)

    @rule(target=handles, path=paths, flags=flags, create=st.sampled_from([0, os.O_CREAT]))
    def open(self, path: str, flags: int, create: int) -> Handle:
        opened: list[int] = []
        nodes: list[Node] = []
        if not self.both(
            lambda: opened.append(os.open(self.root / path, flags | create)),
            lambda: nodes.append(self.model.open(path, flags | create)),
        ):
            return self.substitute()
        handle = Handle(opened[0], nodes[0], appends=bool(flags & os.O_APPEND))
        self.open_handles.append(handle)
        return handle

    def substitute(self) -> Handle:
        """Open an existing file, so that every step has a handle."""
        path = self.root / "substitute"
        node = self.model.nodes.setdefault("substitute", Node(b""))
        handle = Handle(os.open(path, os.O_RDWR | os.O_CREAT), node, appends=False)
        self.open_handles.append(handle)
        return handle

    @rule(path=paths)
    def open_exclusively(self, path: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        self.both(
            lambda: os.close(os.open(self.root / path, flags)),
            lambda: self.model_exclusively(path),
        )

    def model_exclusively(self, path: str) -> None:
        self.model.place(path)
        require("EEXIST", path not in self.model.nodes)
        self.model.open(path, os.O_CREAT)

    @rule(handle=handles, offset=offsets, data=datas)
    def write(self, handle: Handle, offset: int, data: bytes) -> None:
        if not handle.is_closed:
            self.both(
                lambda: os.pwrite(handle.descriptor, data, offset),
                lambda: self.model.write(handle, offset, data),
            )

    @rule(handle=handles, size=sizes)
    def resize(self, handle: Handle, size: int) -> None:
        if not handle.is_closed:
            self.both(
                lambda: os.ftruncate(handle.descriptor, size), self.model.resize, handle.node, size
            )

    @rule(handle=handles)
    def fsync(self, handle: Handle) -> None:
        if not handle.is_closed:
            self.both(lambda: os.fsync(handle.descriptor), lambda: None)

    @rule(handle=consumes(handles))
    def close(self, handle: Handle) -> None:
        if not handle.is_closed:
            self.open_handles.remove(handle)
            self.both(lambda: os.close(handle.descriptor), lambda: None)

    @precondition(lambda self: self.steps >= STEPS_TO_RESTART)
    @rule()
    def restart(self) -> None:
        self.steps = 0
        self.close_all()
        self.server.restart()

    @invariant()
    def handles_see_their_file(self) -> None:
        for handle in self.open_handles:
            content = handle.node.content
            assert os.pread(handle.descriptor, MIB + 1, 0) == content
            assert os.fstat(handle.descriptor).st_size == len(content or b"")

    @invariant()
    def names_and_attributes_are_the_models(self) -> None:
        wanted = {
            path: (self.model.mode(path), len(node.content or b""))
            for path, node in self.model.nodes.items()
            if path
        }
        assert self.seen() == wanted
        for path, node in self.model.nodes.items():
            if node.mtime is not None:
                assert (self.root / path).stat().st_mtime == node.mtime
            if node.content is not None:
                assert (self.root / path).read_bytes() == node.content

    def seen(self) -> dict[str, tuple[int, int]]:
        """Return mode and size of all entries except the fixed ones of the root."""
        found = {}
        todo = [""]
        while todo:
            directory = todo.pop()
            for name in os.listdir(self.root / directory):
                path = f"{directory}/{name}".lstrip("/")
                info = os.lstat(self.root / path)
                if stat.S_ISLNK(info.st_mode) or (not directory and name.startswith(".")):
                    continue
                found[path] = info.st_mode, info.st_size
                if stat.S_ISDIR(info.st_mode):
                    todo.append(path)
        return found


def run(workdir: Path, *, examples: int, steps: int) -> None:
    """Run random histories on one mount and in the model."""
    with Server(workdir) as running:

        class OnThisServer(Histories):
            server = running

        run_state_machine_as_test(
            OnThisServer,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                derandomize=True,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


def test_random_histories_match_the_model(tmp_path: Path) -> None:
    run(tmp_path, examples=30, steps=30)


@pytest.mark.long
def test_many_random_histories_match_the_model(tmp_path: Path) -> None:
    run(tmp_path, examples=1000, steps=60)
