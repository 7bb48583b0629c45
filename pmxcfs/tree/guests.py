"""The guest registry, which enforces that a vmid has at most one configuration file.

The registry is part of delivery: it depends on the delivered messages, not on the tree's current
entries, so that all nodes refuse the same messages. It knows nothing of quorum, users or the
kernel; ``apply`` decides when the rule is checked.
Threads: the caller holds the tree's lock.
Contract: docs/spec/filesystem.md, "Guests"; docs/spec/cluster.md, "Delivery to the tree".
"""

from collections.abc import Iterator
from typing import NamedTuple

from pmxcfs._core import Tree

MAX_VMID = (1 << 32) - 1
GUEST_TYPES = {"qemu-server": "qemu", "lxc": "lxc", "openvz": "openvz"}  # directory -> type
_SUFFIX = ".conf"
_KEPT_PATHS = 1024  # whose guest is remembered: each change asks for its own several times
_NAME_SYMBOLS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")


# The guest that a configuration path belongs to; *type* is "qemu", "lxc" or "openvz".
# A call instead of a class: Cython 0.29 can't compile a class with the base NamedTuple.
GuestPath = NamedTuple("GuestPath", [("vmid", int), ("node", str), ("type", str)])  # noqa: UP014


_parsed: dict[str, GuestPath | None] = {}  # paths that were parsed lately


def parse_guest_path(path: str) -> GuestPath | None:
    """Parse a guest's configuration path; return None for any other path."""
    if not path.endswith((_SUFFIX, "/")):  # a quick first test, as this runs for every change
        return None
    known = _parsed
    guest = known.get(path)
    if guest is None and path not in known:
        guest = _parse(path)
        if len(known) >= _KEPT_PATHS:
            known.clear()
        known[path] = guest
    return guest


def _parse(path: str) -> GuestPath | None:
    parts = [part for part in path.split("/") if part]
    if len(parts) != 4 or parts[0] != "nodes":
        return None
    kind = GUEST_TYPES.get(parts[2])
    vmid = _parse_vmid(parts[3])
    if kind is None or vmid is None or not _is_node_name(parts[1]):
        return None
    return GuestPath(vmid, parts[1], kind)


def path_of(guest: GuestPath) -> str:
    """Return the configuration path of a guest."""
    directory = next(name for name, kind in GUEST_TYPES.items() if kind == guest.type)
    return f"nodes/{guest.node}/{directory}/{guest.vmid}{_SUFFIX}"


def vmid_of(path: str) -> int | None:
    """Return the vmid of a guest's configuration path; None for any other path."""
    guest = parse_guest_path(path)
    return guest.vmid if guest else None


def _parse_vmid(name: str) -> int | None:
    """Return NUMBER of ``NUMBER.conf``; None for any other name."""
    digits = name.removesuffix(_SUFFIX)
    if digits == name or not (digits.isascii() and digits.isdigit()) or digits[0] == "0":
        return None
    vmid = int(digits) if len(digits) <= len(str(MAX_VMID)) else MAX_VMID + 1
    return vmid if vmid <= MAX_VMID else None


def _is_node_name(name: str) -> bool:
    return _NAME_SYMBOLS.issuperset(name) and name[0] != "-" and name[-1] != "-"


class Guests:
    """The registry: the place of each vmid, with undo back to the last ``mark_written``."""

    def __init__(self) -> None:
        self._places: dict[int, GuestPath] = {}
        self._undo: dict[int, GuestPath | None] = {}  # changed vmid -> place before

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[GuestPath]:
        return iter(self._places.values())

    def get(self, vmid: int) -> GuestPath | None:
        """Return the registered place of *vmid*, or None."""
        return self._places.get(vmid)

    def conflicts(self, guest: GuestPath, source: GuestPath | None = None) -> bool:
        """Tell whether *guest*'s vmid is registered at another place.

        *source* is the guest at the source path of a RENAME; the same vmid there is no conflict.
        """
        known = self._places.get(guest.vmid)
        if known is None or known == guest:
            return False
        return source is None or source.vmid != guest.vmid

    def register(self, guest: GuestPath) -> None:
        """Set the place of this vmid, replacing its old place."""
        if self._places.get(guest.vmid) != guest:
            self._keep_undo(guest.vmid)
            self._places[guest.vmid] = guest

    def unregister(self, vmid: int) -> None:
        """Remove this vmid from the registry; an unknown vmid is allowed."""
        if vmid in self._places:
            self._keep_undo(vmid)
            del self._places[vmid]

    def rebuild(self, tree: Tree) -> None:
        """Register exactly the guests of *tree*, and drop the undo log.

        Of two files with the same vmid, the one with the higher version is registered.
        """
        versions: dict[int, int] = {}
        self._places, self._undo = {}, {}
        for guest, version in _find_guests(tree):
            if version > versions.get(guest.vmid, -1):
                versions[guest.vmid] = version
                self._places[guest.vmid] = guest

    def mark_written(self) -> None:
        """Note that the journal has all changes so far: drop the undo log."""
        if self._undo:
            self._undo = {}

    def rollback(self) -> None:
        """Undo everything since the last mark_written."""
        for vmid, place in self._undo.items():
            if place is None:
                self._places.pop(vmid, None)
            else:
                self._places[vmid] = place
        self._undo = {}

    def _keep_undo(self, vmid: int) -> None:
        self._undo.setdefault(vmid, self._places.get(vmid))


def _find_guests(tree: Tree) -> Iterator[tuple[GuestPath, int]]:
    """Yield each configuration file of a guest, with the version of its entry."""
    nodes = tree.find("nodes")
    for node in nodes.children() if nodes else ():
        for name in GUEST_TYPES:
            directory = node.child(name)
            for entry in directory.children() if directory else ():
                guest = None if entry.is_directory else parse_guest_path(entry.path)
                if guest:
                    yield guest, entry.version
