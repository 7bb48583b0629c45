"""Queries of guests' properties, with a cache for queries of all guests.

A property is a line ``name: value`` of a guest's configuration file, before the first line that
starts with ``[``, where snapshots and pending changes begin. The last such line wins; white space
around the value does not count. The cache keeps, for each set of names, what was found in each
file until that file changes: repeating a query reads only the files that changed since.

Threads: all methods need the tree's lock, except ``of_all``, which takes it.
Contract: docs/spec/ipc.md, "Requests 11/13".
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from json.encoder import encode_basestring_ascii

from pmxcfs._core import Entry, Tree
from pmxcfs.tree.guests import GUEST_TYPES, GuestPath, Guests, parse_guest_path

KEPT_QUERIES = 16  # sets of names in the cache; the daemons of Proxmox VE use a few
READ_AT_ONCE = 64  # files to read while the lock is held, about 0.2 ms

_DIRECTORIES = {kind: directory for directory, kind in GUEST_TYPES.items()}


def find_property(content: bytes, name: bytes) -> bytes:
    """Return the value of the property *name* in *content*, empty if *content* lacks it.

    *content* is a result of ``own_part``. One search and no parsing: a query reads up to 10,000
    files in a row.
    """
    start = content.rfind(b"\n%s:" % name)
    if start < 0:
        return b""
    start += len(name) + 2
    end = content.find(b"\n", start)
    return (content[start:] if end < 0 else content[start:end]).strip()


def own_part(content: bytes) -> bytes:
    """Return the part before the first section, with a line feed in front of every line."""
    content = b"\n" + content
    end = content.find(b"\n[")
    return content if end < 0 else content[:end]


def _quoted(text: bytes) -> str:
    """Return *text* as a JSON string."""
    return encode_basestring_ascii(text.decode("utf-8", "replace"))


class _Query:
    """The cache of one set of names: the JSON of each guest that has one of these properties."""

    def __init__(self, names: Sequence[str]) -> None:
        raw = [name.encode("utf-8", "surrogateescape") for name in names]
        self._names = [(_quoted(name), name) for name in raw]
        self.lines: dict[int, str] = {}  # vmid -> JSON member of the guest; none for no property
        self.unread: set[int] = set()  # vmids of guests whose file has changed since it was read
        self.answer: bytes | None = None  # for all guests; None after a change

    def read(self, vmid: int, content: bytes | None) -> None:
        """Update the cache from the content of a guest's file, None if the file is gone."""
        line = self.render(vmid, content) if content else ""
        if line:
            self.lines[vmid] = line
        else:
            self.lines.pop(vmid, None)

    def render(self, vmid: int, content: bytes) -> str:
        """Return the JSON member of a guest whose file is *content*; empty without a property."""
        own = own_part(content)
        found = ((label, find_property(own, name)) for label, name in self._names)
        pairs = [f"{label}: {_quoted(value)}" for label, value in found if value]
        return f'"{vmid}":{{{",".join(pairs)}}}' if pairs else ""


def _answer(lines: Iterable[str]) -> bytes:
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode("ascii")


class Properties:
    """Answers queries of properties, from the cache where it is valid."""

    def __init__(self, tree: Tree, guests: Guests, *, lock: AbstractContextManager[object]) -> None:
        self._tree = tree
        self._guests = guests
        self._lock = lock
        self._queries: dict[tuple[str, ...], _Query] = {}  # least recently used first

    def on_change(self, *paths: str) -> None:
        """Invalidate the guests whose files are or were at *paths*. Needs the lock."""
        if not self._queries:
            return
        for path in paths:
            guest = parse_guest_path(path)
            if guest is not None:
                self._invalidate(guest.vmid)

    def on_reload(self) -> None:
        """Drop the whole cache, as any file may have changed. Needs the lock."""
        self._queries.clear()

    def _invalidate(self, vmid: int) -> None:
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

        Takes the lock for READ_AT_ONCE files at a time, and calls *give_way* in between, without
        the lock.
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
                # Under the lock: a later change of one of these files then invalidates it again.
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
