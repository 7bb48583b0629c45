"""The version counters, the guest list, and the object that holds all status of a node.

A change must not be counted before its cache invalidation was handed to the kernel. Otherwise a
client could see the new counter, read the old content from the page cache, and keep it under the
new version. So ``on_change`` records a change with the sequence number of its invalidation, and
``absorb`` counts the changes whose invalidation was handed over. Callers hold the tree's lock.

Contract: docs/spec/status.md, ".version" and ".vmlist".
"""

from collections import deque
from collections.abc import Callable, Sequence

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


class _Pending:
    """A change that is not counted yet."""

    def __init__(
        self,
        sequence: int,
        watched: Sequence[str],
        guests: Sequence[tuple[int, GuestPath | None]],
        *,
        is_reload: bool = False,
    ) -> None:
        self.sequence = sequence  # of the cache invalidation that must precede counting
        self.watched = watched  # paths whose counters are incremented
        self.guests = guests  # vmid -> its path; None if removed
        self.is_reload = is_reload  # guests has all guests of the tree


class Status:
    """The counters of ``.version``, the guests of ``.vmlist``, and the state of the status group.

    *start_time* is in seconds since 1970; *record* is called with each metric that is set.
    """

    def __init__(
        self,
        node: str,
        guests: Guests,
        *,
        start_time: int,
        record: Callable[[str, bytes], None] | None = None,
    ) -> None:
        self.node = node
        self.start_time = start_time  # seconds since 1970
        self.members = Members(node)
        self.metrics = Metrics(record)
        self.keys = KeyValueStore(self.members, self.metrics)
        self.log = ClusterLog(node)
        self.vmlist = 0  # counts changes of ``.vmlist``
        self.counters = dict.fromkeys(WATCHED, 0)
        self.guest_lines: dict[int, str] = {}  # vmid -> its line in ``.vmlist``
        self.revision = 0  # changes with every counter of a path or of guests
        self._guests = guests
        self._guest_version = 0  # one counter for all guests; never reset
        self._pending: deque[_Pending] = deque()
        self.on_reload(sequence=0)
        self.absorb(0)

    def on_reload(self, *, sequence: int) -> None:
        """Record that any entry may have changed. Replaces all pending changes.

        *sequence* is that of the cache invalidation.
        """
        self._pending.clear()
        guests = [(guest.vmid, guest) for guest in self._guests]
        self._pending.append(_Pending(sequence, list(self.counters), guests, is_reload=True))

    def on_change(self, path: str, source: str = "", sequence: int = 0) -> bool:
        """Record a change of the entry at *path*, or its rename from *source* to *path*.

        *sequence* is that of the cache invalidation. Return whether the change is counted.
        """
        watched: list[str] = []
        guests: dict[int, GuestPath | None] = {}
        if not self._find(path, watched, guests) and not source:
            return False
        if source:
            self._find(source, watched, guests)
            if not watched and not guests:
                return False
        self._pending.append(_Pending(sequence, watched, list(guests.items())))
        return True

    def _find(self, path: str, watched: list[str], guests: dict[int, GuestPath | None]) -> bool:
        """Add *path* to *watched*, and its guest to *guests*, if they are counted; tell if so."""
        is_watched = path in self.counters
        if is_watched:
            watched.append(path)
        guest = parse_guest_path(path)
        if guest is not None:
            guests[guest.vmid] = self._guests.get(guest.vmid)
        return is_watched or guest is not None

    def absorb(self, handed: int) -> None:
        """Count the pending changes whose sequence is at most *handed*."""
        while self._pending and self._pending[0].sequence <= handed:
            self._count(self._pending.popleft())

    def _count(self, pending: _Pending) -> None:
        for path in pending.watched:
            self.counters[path] += 1
        if pending.is_reload:
            self.guest_lines.clear()
        for vmid, guest in pending.guests:
            if guest is None:
                self.guest_lines.pop(vmid, None)
            else:
                self._list_guest(guest)
        self.vmlist += pending.is_reload or bool(pending.guests)
        self.revision += 1

    def _list_guest(self, guest: GuestPath) -> None:
        self._guest_version += 1
        self.guest_lines[guest.vmid] = (
            f'"{guest.vmid}": {{ "node": "{guest.node}", "type": "{guest.type}", '
            f'"version": {self._guest_version} }}'
        )
