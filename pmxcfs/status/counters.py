"""What this node knows of itself and the cluster: version counters, the guest list, and the rest.

A change is counted only when its kernel invalidation has been handed over, or a client could see
the new counter, read the old content from the kernel's cache, and keep it under the new version.
So ``on_change`` only notes the change with a sequence, and ``absorb`` counts what is due. Used with
the tree's lock held.

What the status group keeps is in ``members``, ``keys``, ``metrics`` and ``log``.

Contract: docs/spec/status.md, ".version" and ".vmlist".
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from pmxcfs.status.cluster_log import ClusterLog
from pmxcfs.status.kvstore import KeyValueStore
from pmxcfs.status.members import Members
from pmxcfs.status.metrics import Metrics
from pmxcfs.tree.guests import GuestPath, Guests, parse_guest_path

WATCHED = (
    "corosync.conf",
    "corosync.conf.new",
    "storage.cfg",
    "user.cfg",
    "domains.cfg",
    "notifications.cfg",
    "priv/notifications.cfg",
    "priv/shadow.cfg",
    "priv/acme/plugins.cfg",
    "priv/tfa.cfg",
    "priv/token.cfg",
    "priv/wg-keys.cfg",
    "datacenter.cfg",
    "vzdump.cron",
    "vzdump.conf",
    "jobs.cfg",
    "ha/crm_commands",
    "ha/manager_status",
    "ha/resources.cfg",
    "ha/rules.cfg",
    "ha/groups.cfg",
    "ha/fence.cfg",
    "status.cfg",
    "replication.cfg",
    "ceph.conf",
    "sdn/vnets.cfg",
    "sdn/zones.cfg",
    "sdn/controllers.cfg",
    "sdn/subnets.cfg",
    "sdn/ipams.cfg",
    "sdn/mac-cache.json",
    "sdn/pve-ipam-state.json",
    "sdn/dns.cfg",
    "sdn/fabrics.cfg",
    "sdn/route-maps.cfg",
    "sdn/prefix-lists.cfg",
    "sdn/.running-config",
    "virtual-guest/cpu-models.conf",
    "virtual-guest/profiles.cfg",
    "firewall/cluster.fw",
    "mapping/directory.cfg",
    "mapping/pci.cfg",
    "mapping/usb.cfg",
)


class _Noted(NamedTuple):
    """A change that waits to be counted."""

    sequence: int  # count it once the kernel has been handed this much
    watched: tuple[str, ...]  # paths whose counters go up
    guests: tuple[tuple[int, GuestPath | None], ...]  # vmid -> where it is now
    is_reload: bool = False  # there are no other guests


class Status:
    """The counters of ``.version``, the table of ``.vmlist``, and what the cluster shares."""

    def __init__(self, node: str, guests: Guests, *, start_time: int) -> None:
        self.node = node
        self.start_time = start_time  # seconds since 1970
        self.members = Members(node)
        self.metrics = Metrics()
        self.keys = KeyValueStore(self.members, self.metrics)
        self.log = ClusterLog(node)
        self.vmlist = 0  # counts changes of ``.vmlist``
        self.counters = dict.fromkeys(WATCHED, 0)
        self.guest_lines: dict[int, str] = {}  # vmid -> its JSON in ``.vmlist``
        self.revision = 0  # changes whenever a counter of a path or of guests does
        self._guests = guests
        self._guest_version = 0  # one counter for all guests, never restarted
        self._noted: deque[_Noted] = deque()
        self.on_reload(sequence=0)
        self.absorb(0)

    def on_reload(self, *, sequence: int) -> None:
        """Note that any entry may have changed: everything is counted up, and only once."""
        self._noted.clear()
        guests = tuple([(guest.vmid, guest) for guest in self._guests])
        self._noted.append(_Noted(sequence, tuple(self.counters), guests, is_reload=True))

    def on_change(self, *paths: str, sequence: int) -> None:
        """Note a change of what stands, or stood, at *paths*; the first is where it ended."""
        for path in paths:  # nearly all changes are of nothing that is counted
            if path in self.counters or parse_guest_path(path) is not None:
                self._note(paths, sequence)
                break

    def _note(self, paths: Sequence[str], sequence: int) -> None:
        watched = tuple([path for path in paths if path in self.counters])
        vmids = {guest.vmid for guest in map(parse_guest_path, paths) if guest is not None}
        guests = tuple([(vmid, self._guests.get(vmid)) for vmid in vmids])
        self._noted.append(_Noted(sequence, watched, guests))

    def absorb(self, handed: int) -> None:
        """Count the changes whose sequence is at most *handed*."""
        while self._noted and self._noted[0].sequence <= handed:
            self._count(self._noted.popleft())

    def _count(self, noted: _Noted) -> None:
        for path in noted.watched:
            self.counters[path] += 1
        if noted.is_reload:
            self.guest_lines.clear()
        for vmid, guest in noted.guests:
            if guest is None:
                self.guest_lines.pop(vmid, None)
            else:
                self._list_guest(guest)
        self.vmlist += noted.is_reload or bool(noted.guests)
        self.revision += 1

    def _list_guest(self, guest: GuestPath) -> None:
        self._guest_version += 1
        self.guest_lines[guest.vmid] = (
            f'"{guest.vmid}": {{ "node": "{guest.node}", "type": "{guest.type}", '
            f'"version": {self._guest_version} }}'
        )
