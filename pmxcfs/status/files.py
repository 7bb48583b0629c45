"""The fixed entries of the root directory: status files, links and the ``.debug`` switch.

A ``StatusFile`` renders its content and knows when it changed. A ``Snapshot`` is one rendering; its
bytes never change, so an open file handle can read from it. Callers hold the tree's lock.
Contract: docs/spec/status.md; filesystem.md, "Fixed entries of the root"; fuse.md, "Status files".
"""

import json
from collections.abc import Callable, Mapping

from pmxcfs.errors import Failed
from pmxcfs.messages import ClusterNode
from pmxcfs.status.counters import Status
from pmxcfs.status.members import Members


class Link:
    """A symbolic link. The FUSE edge stores its inode number in *node*."""

    __slots__ = ("name", "node", "target")

    def __init__(self, name: str, target: str) -> None:
        self.name = name
        self.target = target.encode()
        self.node = 0


def links(node_name: str) -> list[Link]:
    """Return the symbolic links of the root to the directories of the node *node_name*."""
    home = f"nodes/{node_name}"
    own = [Link(name, f"{home}/{name}") for name in ("qemu-server", "openvz", "lxc")]
    return [Link("local", home), *own]


class Switch:
    """A file with the content ``0\\n`` or ``1\\n`` that turns something on and off.

    The FUSE edge stores its inode number in *node*.
    """

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
        """The content of the file."""
        return b"1\n" if self._is_on() else b"0\n"

    def write(self, data: bytes) -> int:
        """Turn it on or off; return the number of bytes used. Raises Failed for other content."""
        if data[:2] not in (b"0\n", b"1\n"):
            raise Failed(f"{self.name} accepts only 0 or 1 and a line feed")
        self._turn(data[:1] == b"1")
        return 2


class Snapshot:
    """The content of a status file at one time. The FUSE edge stores an inode number in *node*."""

    __slots__ = ("content", "file", "made_ns", "node", "revision")

    def __init__(self, file: "StatusFile", *, now_ns: int) -> None:
        self.file = file
        self.revision = file.revision()
        self.content = file.render()
        self.made_ns = now_ns  # monotonic clock
        self.node = 0


class StatusFile:
    """A status file. *render* returns its content, *revision* a value that changes with it."""

    def __init__(
        self, name: str, *, render: Callable[[], bytes], revision: Callable[[], object]
    ) -> None:
        self.name = name
        self.render = render
        self.revision = revision
        self._latest: Snapshot | None = None

    def snapshot(self, now_ns: int) -> Snapshot:
        """Return a snapshot of the current content; the last one if it is still current.

        *now_ns* is the monotonic time.
        """
        if self._latest is None or self._latest.revision != self.revision():
            self._latest = Snapshot(self, now_ns=now_ns)
        else:
            self._latest.made_ns = now_ns
        return self._latest

    @property
    def content(self) -> bytes:
        """The current content. It is rendered only once per change."""
        if self._latest is None or not self.is_current(self._latest):
            self._latest = Snapshot(self, now_ns=0)
        return self._latest.content

    def is_current(self, snapshot: Snapshot) -> bool:
        """Tell whether *snapshot* has the current content."""
        return snapshot.revision == self.revision()


def quoted(text: str) -> str:
    """Return *text* as a JSON string. Bytes that are not UTF-8 become question marks."""
    return json.dumps(text.encode("utf-8", "replace").decode())


def render_version(status: Status) -> str:
    """Render ``.version``, one counter per line."""
    lines = [
        f'"starttime": {status.start_time}',
        f'"clinfo": {status.members.clinfo}',
        f'"vmlist": {status.vmlist}',
        *(f'"{path}": {count}' for path, count in status.counters.items()),
        f'"kvstore": {_render_keys(status.keys.versions())}',
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _render_keys(versions: Mapping[str, Mapping[str, int]]) -> str:
    """Render the mapping node -> key -> version, one key per line."""
    nodes = []
    for node, keys in versions.items():
        lines = ",\n".join([f"{quoted(key)}: {version}" for key, version in keys.items()])
        nodes.append(f"{quoted(node)}: {{\n{lines}}}")
    return "{\n" + ",\n".join(nodes) + "\n}"


def render_members(members: Members) -> str:
    """Render ``.members``, one node per line; without a cluster, only this node's name."""
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
    """Render ``.vmlist``, one guest per line."""
    if not status.guest_lines:
        return f'{{\n"version": {status.vmlist}\n}}\n'
    guests = ",\n".join(status.guest_lines.values())
    return f'{{\n"version": {status.vmlist},\n"ids": {{\n{guests}\n}}\n}}\n'


def status_files(
    status: Status, *, handed: Callable[[], int], monotonic: Callable[[], float]
) -> dict[str, StatusFile]:
    """Return all status files by name.

    *handed* returns the sequence of the last cache invalidation that was handed to the kernel,
    *monotonic* the time in seconds.
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
