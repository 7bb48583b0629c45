"""The fixed entries of the root: status files, the links, and the switch for debug messages.

A ``StatusFile`` knows how to render and what its content depends on; a ``Snapshot`` is one
rendering, whose size and bytes never change. Contract: docs/spec/status.md; filesystem.md, "Fixed
entries of the root"; fuse.md, "Status files".
"""

import json
from collections.abc import Callable, Mapping

from pmxcfs.errors import Failed
from pmxcfs.messages import ClusterNode
from pmxcfs.status.counters import Status
from pmxcfs.status.members import Members


class Link:
    """A symbolic link; *node* is for the FUSE edge, as in the other classes."""

    __slots__ = ("name", "node", "target")

    def __init__(self, name: str, target: str) -> None:
        self.name = name
        self.target = target.encode()
        self.node = 0


def links(node_name: str) -> list[Link]:
    """Return the links of the root to this node's own directories."""
    home = f"nodes/{node_name}"
    own = [Link(name, f"{home}/{name}") for name in ("qemu-server", "openvz", "lxc")]
    return [Link("local", home), *own]


class Switch:
    """A file of two bytes, ``0\\n`` or ``1\\n``, that turns something on and off."""

    __slots__ = ("_is_on", "_turn", "name", "node")

    def __init__(
        self, name: str, *, is_on: Callable[[], bool], turn: Callable[[bool], None]
    ) -> None:
        self.name = name
        self.node = 0
        self._is_on = is_on
        self._turn = turn

    @property
    def content(self) -> bytes:
        """What the file reads."""
        return b"1\n" if self._is_on() else b"0\n"

    def write(self, data: bytes) -> int:
        """Set it; return the bytes taken. Raises Failed for anything but the two contents."""
        if data[:2] not in (b"0\n", b"1\n"):
            raise Failed(f"{self.name} takes 0 or 1 and a line feed")
        self._turn(data[:1] == b"1")
        return 2


class Snapshot:
    """The content of a status file at one moment."""

    __slots__ = ("content", "file", "made_ns", "node", "revision")

    def __init__(self, file: "StatusFile", *, now_ns: int) -> None:
        self.file = file
        self.revision = file.revision()
        self.content = file.render()
        self.made_ns = now_ns  # monotonic
        self.node = 0


class StatusFile:
    """One status file: *render* makes its content, *revision* changes whenever that would."""

    def __init__(
        self, name: str, *, render: Callable[[], bytes], revision: Callable[[], object]
    ) -> None:
        self.name = name
        self.render = render
        self.revision = revision
        self._latest: Snapshot | None = None

    def snapshot(self, now_ns: int) -> Snapshot:
        """Return a snapshot of the present content, the last one if that still is."""
        if self._latest is None or self._latest.revision != self.revision():
            self._latest = Snapshot(self, now_ns=now_ns)
        else:
            self._latest.made_ns = now_ns
        return self._latest

    @property
    def content(self) -> bytes:
        """The present content, for those who need no snapshot; built once per change, too."""
        if self._latest is None or not self.is_current(self._latest):
            self._latest = Snapshot(self, now_ns=0)
        return self._latest.content

    def is_current(self, snapshot: Snapshot) -> bool:
        """Tell whether a new snapshot would have the same content."""
        return snapshot.revision == self.revision()


def quoted(text: str) -> str:
    """Return *text* as a JSON string; bytes that are not UTF-8 become question marks."""
    return json.dumps(text.encode("utf-8", "replace").decode())


def render_version(status: Status) -> str:
    """Render ``.version``: one counter a line."""
    lines = [
        f'"starttime": {status.start_time}',
        f'"clinfo": {status.members.clinfo}',
        f'"vmlist": {status.vmlist}',
        *(f'"{path}": {count}' for path, count in status.counters.items()),
        f'"kvstore": {_render_keys(status.keys.versions())}',
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _render_keys(versions: Mapping[str, Mapping[str, int]]) -> str:
    """Render node -> key -> version: one key a line."""
    nodes = []
    for node, keys in versions.items():
        lines = ",\n".join([f"{quoted(key)}: {version}" for key, version in keys.items()])
        nodes.append(f"{quoted(node)}: {{\n{lines}}}")
    return "{\n" + ",\n".join(nodes) + "\n}"


def render_members(members: Members) -> str:
    """Render ``.members``: one node a line; without a cluster only this node's name."""
    lines = [f'"nodename": {quoted(members.own.name)}', f'"version": {members.clinfo}']
    config = members.config
    if config:
        addresses = members.addresses()
        nodes = ",\n".join(
            [_render_node(members, node, addresses.get(node.name)) for node in config.nodes]
        )
        lines += [
            f'"cluster": {{ "name": {quoted(config.name)}, "version": {config.version}, '
            f'"nodes": {len(config.nodes)}, "quorate": {members.quorate:d} }}',
            f'"nodelist": {{\n{nodes}\n}}',
        ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _render_node(members: Members, node: ClusterNode, address: str | None) -> str:
    ip = f', "ip": {quoted(address)}' if address else ""
    online = node.nodeid in members.online
    return f'{quoted(node.name)}: {{ "id": {node.nodeid}, "online": {online:d}{ip} }}'


def render_guest_list(status: Status) -> str:
    """Render ``.vmlist``: one guest a line."""
    if not status.guest_lines:
        return f'{{\n"version": {status.vmlist}\n}}\n'
    guests = ",\n".join(status.guest_lines.values())
    return f'{{\n"version": {status.vmlist},\n"ids": {{\n{guests}\n}}\n}}\n'


def status_files(
    status: Status, *, handed: Callable[[], int], monotonic: Callable[[], float]
) -> dict[str, StatusFile]:
    """Return all status files by name.

    *handed* tells what the kernel has been told so far, *monotonic* the time in seconds.
    """
    members, keys, metrics, log = status.members, status.keys, status.metrics, status.log

    def absorbed() -> Status:
        status.absorb(handed())
        return status

    files = (
        StatusFile(
            ".version",
            render=lambda: render_version(status).encode(),
            revision=lambda: (absorbed().revision, members.clinfo, keys.revision),
        ),
        StatusFile(
            ".members",
            render=lambda: render_members(members).encode(),
            revision=lambda: members.revision,
        ),
        StatusFile(
            ".vmlist",
            render=lambda: render_guest_list(status).encode(),
            revision=lambda: absorbed().vmlist,
        ),
        StatusFile(
            ".rrd",
            render=lambda: metrics.render(monotonic()),
            revision=lambda: metrics.revision(monotonic()),
        ),
        StatusFile(
            ".clusterlog",
            render=lambda: log.render().encode(),
            revision=lambda: log.revision,
        ),
    )
    return {file.name: file for file in files}
