"""The cluster log: what the nodes' management daemons told everybody, newest first.

Text is made printable ASCII before it is stored, in a form that goes into JSON as it is.
Contract: spec status.md, "Cluster log".
"""

from typing import NamedTuple

SHOWN = 50  # entries in the ``.clusterlog`` file
INFO = 6  # syslog priority


class LogEntry(NamedTuple):
    """One line of the log; the texts are printable already."""

    uid: int  # counts this process's entries, from 1
    time: int  # seconds since 1970
    priority: int  # syslog's, 0 to 7
    tag: str
    pid: int
    node: str
    user: str
    message: str

    def to_json(self) -> str:
        """Render as one JSON object."""
        return (
            f'{{"uid": {self.uid}, "time": {self.time}, "pri": {self.priority}, '
            f'"tag": "{self.tag}", "pid": {self.pid}, "node": "{self.node}", '
            f'"user": "{self.user}", "msg": "{self.message}"}}'
        )


def printable(text: str) -> str:
    """Escape *text* to printable ASCII that can stand between quotes in JSON."""
    return "".join(map(_printable_character, text))


def _printable_character(character: str) -> str:
    code = ord(character)
    if character == '"':
        return '\\"'
    if code < 32 or code == 127:
        return f"#{code:03d}"
    if code < 127:
        return character
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8
        return "?"
    return f"\\u{code:04x}" if code < 0x10000 else ""


class ClusterLog:
    """The log as this node knows it."""

    def __init__(self) -> None:
        self._entries: list[LogEntry] = []  # oldest first

    @property
    def revision(self) -> int:
        """A number that changes whenever the content does."""
        return len(self._entries)

    def add(self, entry: LogEntry) -> None:
        """Append *entry* as the newest."""
        self._entries.append(entry)

    def render(self, *, most: int = SHOWN) -> str:
        """Return the newest *most* entries as the JSON of ``.clusterlog``."""
        lines = ",\n".join(entry.to_json() for entry in reversed(self._entries[-most:]))
        return f'{{\n"data": [\n{lines}\n]\n}}\n'
