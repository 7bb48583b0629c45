"""Properties of guests, as their configuration files have them, for those who ask for all guests.

A property is a line ``name: value`` before the first line that starts with ``[``, where snapshots
and pending changes begin; the last such line wins, white space around the value does not count.
What a query found in a file is kept until that file changes, so asking again costs what changed
meanwhile. Used with the tree's lock held, except ``answer``. Contract: docs/spec/ipc.md, "Requests
11/13".
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from json.encoder import encode_basestring_ascii

from pmxcfs._core import Entry, Tree
from pmxcfs.tree.guests import GUEST_TYPES, GuestPath, Guests, parse_guest_path

KEPT_QUERIES = 16  # sets of names; Proxmox VE's daemons ask for a handful
READ_AT_ONCE = 64  # files between two chances for others to go on; some 0.2 ms

_DIRECTORIES = {kind: directory for directory, kind in GUEST_TYPES.items()}


def find_property(content: bytes, name: bytes) -> bytes:
    """Return a property's value in *content*, empty if there is none.

    *content* is what ``own_part`` returns; both are one search each, as this is asked for 10,000
    files in a row.
    """
    start = content.rfind(b"\n%s:" % name)
    if start < 0:
        return b""
    start += len(name) + 2
    end = content.find(b"\n", start)
    return (content[start:] if end < 0 else content[start:end]).strip()


def own_part(content: bytes) -> bytes:
    """Return what comes before the first section, with a line feed in front of every line."""
    content = b"\n" + content
    end = content.find(b"\n[")
    return content if end < 0 else content[:end]


def _quoted(text: bytes) -> str:
    """Return *text* as a JSON string."""
    return encode_basestring_ascii(text.decode("utf-8", "replace"))


class _Query:
    """What was found of one set of names: the JSON of each guest that has one of them."""

    def __init__(self, names: Sequence[str]) -> None:
        raw = [name.encode("utf-8", "surrogateescape") for name in names]
        self._names = [(_quoted(name), name) for name in raw]
        self.lines: dict[int, str] = {}  # vmid -> its object, if that is not empty
        self.unread: set[int] = set()  # guests whose file was not looked at since it changed
        self.answer: bytes | None = None  # for all guests, while nothing changes

    def read(self, vmid: int, content: bytes | None) -> None:
        """Take the content of a guest's file, None if there is none."""
        line = self.render(vmid, content) if content else ""
        if line:
            self.lines[vmid] = line
        else:
            self.lines.pop(vmid, None)

    def render(self, vmid: int, content: bytes) -> str:
        """Return the line of a guest whose file has this content; empty if it has no property."""
        own = own_part(content)
        found = ((label, find_property(own, name)) for label, name in self._names)
        pairs = [f"{label}: {_quoted(value)}" for label, value in found if value]
        return f'"{vmid}":{{{",".join(pairs)}}}' if pairs else ""


def _answer(lines: Iterable[str]) -> bytes:
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode("ascii")


class Properties:
    """Answers queries of properties, and keeps what it found."""

    def __init__(self, tree: Tree, guests: Guests, *, lock: AbstractContextManager[object]) -> None:
        self._tree = tree
        self._guests = guests
        self._lock = lock
        self._queries: dict[tuple[str, ...], _Query] = {}  # those asked last come last

    def on_change(self, *paths: str) -> None:
        """Note a change of what stands, or stood, at *paths*. Needs the lock."""
        for path in paths:
            guest = parse_guest_path(path)
            if guest is not None:
                self._forget(guest.vmid)

    def on_reload(self) -> None:
        """Forget everything: any file may have changed. Needs the lock."""
        self._queries.clear()

    def _forget(self, vmid: int) -> None:
        for query in self._queries.values():
            query.unread.add(vmid)
            query.answer = None

    def of_guest(self, guest: GuestPath, names: Sequence[str]) -> bytes:
        """Return the answer for one guest. Needs the lock."""
        content = self._content(guest)
        line = _Query(names).render(guest.vmid, content) if content else ""
        return _answer([line] if line else [])

    def of_all(self, names: Sequence[str], *, give_way: Callable[[], None]) -> bytes:
        """Return the answer for all guests that have at least one of the properties.

        Takes the lock for a few files at a time, and calls *give_way* without it in between.
        """
        with self._lock:
            query = self._query(tuple(dict.fromkeys(names)))
        while True:
            with self._lock:
                files = self._take_unread(query)
                if not files:
                    if query.answer is None:
                        query.answer = _answer(query.lines.values())
                    return query.answer
                # Under the lock, so that a file that changes meanwhile is unread again after it.
                for vmid, content in files:
                    query.read(vmid, content)
            give_way()

    def _query(self, names: tuple[str, ...]) -> _Query:
        query = self._queries.pop(names, None)
        if query is None:
            query = _Query(names)
            query.unread.update(guest.vmid for guest in self._guests)
        self._queries[names] = query
        while len(self._queries) > KEPT_QUERIES:
            del self._queries[next(iter(self._queries))]
        return query

    def _take_unread(self, query: _Query) -> list[tuple[int, bytes | None]]:
        count = min(READ_AT_ONCE, len(query.unread))
        vmids = [query.unread.pop() for _ in range(count)]
        return [(vmid, self._content(self._guests.get(vmid))) for vmid in vmids]

    def _content(self, guest: GuestPath | None) -> bytes | None:
        entry = self._entry(guest) if guest else None
        return entry.content if entry and not entry.is_directory else None

    def _entry(self, guest: GuestPath) -> Entry | None:
        return self._tree.find(f"nodes/{guest.node}/{_DIRECTORIES[guest.type]}/{guest.vmid}.conf")
