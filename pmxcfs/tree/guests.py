"""Which guest is configured where: the registry behind the rule that a vmid exists only once.

The registry is part of delivery (cluster.md, "Delivery to the tree"): it changes by the letter of
what was delivered, not by what the tree holds, so that all nodes refuse the same messages. It knows
nothing of quorum, users or the kernel, and does not say when a rule applies. Threads: the caller
holds the tree's lock.
"""

from collections.abc import Iterator
from typing import NamedTuple

from pmxcfs._core import Tree

MAX_VMID = (1 << 32) - 1
GUEST_TYPES = {"qemu-server": "qemu", "lxc": "lxc", "openvz": "openvz"}  # directory -> type
_SUFFIX = ".conf"
_NAME_SYMBOLS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")


# What a path says about the guest whose configuration it is; *type* is "qemu", "lxc" or "openvz".
# A call, as in all modules that are compiled: Cython 0.29 can't make a class with this base.
GuestPath = NamedTuple("GuestPath", [("vmid", int), ("node", str), ("type", str)])  # noqa: UP014


def parse_guest_path(path: str) -> GuestPath | None:
    """Return the guest whose configuration *path* is, or None if it is none's."""
    if _SUFFIX not in path:  # nearly all are not, and this is asked for every change
        return None
    parts = [part for part in path.split("/") if part]
    if len(parts) != 4 or parts[0] != "nodes":
        return None
    kind = GUEST_TYPES.get(parts[2])
    vmid = _parse_vmid(parts[3])
    if kind is None or vmid is None or not _is_node_name(parts[1]):
        return None
    return GuestPath(vmid, parts[1], kind)


def vmid_of(path: str) -> int | None:
    """Return the number of the guest whose configuration *path* is, or None if it is none's."""
    guest = parse_guest_path(path)
    return guest.vmid if guest else None


def _parse_vmid(name: str) -> int | None:
    """Return NUMBER of ``NUMBER.conf``, or None if the name is not like that."""
    digits = name.removesuffix(_SUFFIX)
    if digits == name or not (digits.isascii() and digits.isdigit()) or digits[0] == "0":
        return None
    vmid = int(digits) if len(digits) <= len(str(MAX_VMID)) else MAX_VMID + 1
    return vmid if vmid <= MAX_VMID else None


def _is_node_name(name: str) -> bool:
    return _NAME_SYMBOLS.issuperset(name) and name[0] != "-" and name[-1] != "-"


class Guests:
    """The registry, one place per vmid."""

    def __init__(self) -> None:
        self._places: dict[int, GuestPath] = {}
        self._before: dict[int, GuestPath | None] = {}  # what changed since the last mark_saved

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[GuestPath]:
        return iter(self._places.values())

    def get(self, vmid: int) -> GuestPath | None:
        """Return where *vmid* is registered, or None."""
        return self._places.get(vmid)

    def conflicts(self, guest: GuestPath, *, source: GuestPath | None = None) -> bool:
        """Tell whether the rule refuses *guest*; *source* is where a RENAME moves it from."""
        known = self._places.get(guest.vmid)
        if known is None or known == guest:
            return False
        return source is None or source.vmid != guest.vmid

    def register(self, guest: GuestPath) -> None:
        """Note that the configuration of this vmid is here, and nowhere else."""
        if self._places.get(guest.vmid) != guest:
            self._remember(guest.vmid)
            self._places[guest.vmid] = guest

    def unregister(self, vmid: int) -> None:
        """Forget this vmid, wherever it is; it may be unknown."""
        if vmid in self._places:
            self._remember(vmid)
            del self._places[vmid]

    def rebuild(self, tree: Tree) -> None:
        """Register exactly the files of *tree*; of two with one vmid the higher version stays.

        What was there before can't be rolled back to.
        """
        versions: dict[int, int] = {}
        self._places, self._before = {}, {}
        for guest, version in _find_guests(tree):
            if version > versions.get(guest.vmid, -1):
                versions[guest.vmid] = version
                self._places[guest.vmid] = guest

    def mark_saved(self) -> None:
        """Forget how to undo: everything so far is saved."""
        if self._before:
            self._before = {}

    def rollback(self) -> None:
        """Go back to the last mark_saved."""
        for vmid, place in self._before.items():
            if place is None:
                self._places.pop(vmid, None)
            else:
                self._places[vmid] = place
        self._before = {}

    def _remember(self, vmid: int) -> None:
        self._before.setdefault(vmid, self._places.get(vmid))


def _find_guests(tree: Tree) -> Iterator[tuple[GuestPath, int]]:
    """Yield every configuration file of a guest with its entry's version."""
    nodes = tree.find("nodes")
    for node in nodes.children() if nodes else ():
        for name in GUEST_TYPES:
            directory = node.child(name)
            for entry in directory.children() if directory else ():
                guest = None if entry.is_directory else parse_guest_path(entry.path)
                if guest:
                    yield guest, entry.version
