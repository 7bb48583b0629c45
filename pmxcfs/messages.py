"""The messages of the cluster and the record of an entry, as plain values.

Every change of the tree is a ``Mutation``, whether this node or a peer issues it. A path has no
leading slash. Paths are ``str`` decoded with ``surrogateescape``, because names are arbitrary bytes
outside of pmxcfs. Times are whole seconds since 1970. The byte layouts are in ``_cpg``.
Contract: docs/spec/cluster.md, "Messages".
"""

from enum import Enum, IntEnum
from typing import NamedTuple

MAX_FILE_SIZE = 1 << 20  # bytes in one file; checked by the issuer and at delivery
MAX_TOTAL_SIZE = 128 << 20  # bytes of content in the tree; checked by the issuer only
MAX_ENTRIES = 262144  # files and directories in the tree; checked by the issuer only
MAX_NEW_NAME = 255  # bytes in a new name; checked by the issuer only, so longer names can exist
# Names of the priorities of cluster log entries, by syslog's numbers.
PRIORITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
MAX_TIME = (1 << 32) - 1  # the highest mtime, in seconds


class EntryType(IntEnum):
    """The type of an entry, with the values of the database (those of dirent's d_type)."""

    DIRECTORY = 4
    FILE = 8


class Kind(IntEnum):
    """The subtype of a NORMAL message in the tree's group."""

    WRITE = 1
    MKDIR = 2
    DELETE = 3
    RENAME = 4
    CREATE = 5
    MTIME = 6
    UNLOCK_REQUEST = 7
    UNLOCK = 8


class Write(NamedTuple):
    """Write *data* at *offset* (bytes); if *truncate*, cut the file off at the end of *data*."""

    path: str
    offset: int
    data: bytes
    truncate: bool


class Mkdir(NamedTuple):
    """Make a directory."""

    path: str


class Delete(NamedTuple):
    """Remove a file or an empty directory."""

    path: str


class Rename(NamedTuple):
    """Move *path* to *to*, replacing an existing entry at *to*."""

    path: str
    to: str


class Create(NamedTuple):
    """Make an empty file."""

    path: str


class Mtime(NamedTuple):
    """Set the modification time of *path*, in seconds."""

    path: str
    mtime: int


class Unlock(NamedTuple):
    """Remove the lock at *path* if its entry checksum (32 bytes) still is *checksum*."""

    path: str
    checksum: bytes


Mutation = Write | Mkdir | Delete | Rename | Create | Mtime | Unlock


class Record(NamedTuple):
    """One entry as in the database and in UPDATE messages. The root has inode 0, an empty name."""

    inode: int
    parent: int
    version: int
    writer: int
    mtime: int
    type: int
    name: bytes
    data: bytes | None  # None for a directory, and possibly for an empty file


# The cluster according to corosync's configuration.


class ClusterNode(NamedTuple):
    """One configured node: a ``node`` section of the nodelist in corosync.conf."""

    name: str
    nodeid: int
    address: str  # ring0_addr as written: an IP address, or a name that may not resolve
    votes: int


class ClusterConfig(NamedTuple):
    """The configuration of the running corosync."""

    name: str  # totem.cluster_name
    version: int  # totem.config_version
    nodes: tuple[ClusterNode, ...]  # by rising nodeid; names and ids are unique
    # Milliseconds until corosync misses a silent node, and until it then agrees on the members.
    token: int | None = None  # None: unknown
    consensus: int | None = None


# Messages between nodes.


class Group(Enum):
    """A closed process group of corosync. Both groups run the same state machine."""

    TREE = "pve_dcdb_v1", 1
    STATUS = "pve_kvstore_v1", 0

    def __init__(self, cpg_name: str, protocol: int) -> None:
        self.cpg_name = cpg_name
        self.protocol = protocol  # the protocol version in the header of each message


class Member(NamedTuple):
    """One process in a group. Members are ordered by nodeid, then by process id."""

    nodeid: int
    pid: int

    def __str__(self) -> str:
        return f"{self.nodeid}/{self.pid}"


class Epoch(NamedTuple):
    """The identifier of a synchronization round; state messages carry the epoch of their round."""

    number: int  # counter of epochs made by that member
    time: int
    nodeid: int  # of the member that made the epoch
    pid: int


class UnlockRequest(NamedTuple):
    """Ask the lowest member to remove the lock at *path* if it has expired by that node's clock."""

    path: str
    checksum: bytes  # of the entry, 32 bytes


class SetKey(NamedTuple):
    """Set one of the sender's keys in the status group; an empty value removes the key."""

    key: str
    value: bytes


class LogEntry(NamedTuple):
    """One entry of the cluster log. Strings are the bytes on the wire without the final NUL."""

    uid: int  # sequence number, counted by the sender
    time: int
    node_digest: int  # 64-bit FNV-1a of the string and its NUL
    ident_digest: int
    pid: int
    priority: int  # 0 to 7, as syslog's
    node: bytes
    ident: bytes
    tag: bytes
    message: bytes
    trailing: bytes = bytes(4)  # padding; kept as received so that re-encoding gives the same bytes


Body = Mutation | UnlockRequest | SetKey | LogEntry


class Normal(NamedTuple):
    """A change, delivered in the total order of the group."""

    time: int  # the sender's clock
    serial: int  # counted by the sender from 1 (the "count" of cluster.md)
    body: Body


class SyncStart(NamedTuple):
    """Start a synchronization round with a new epoch."""

    time: int
    epoch: Epoch


class State(NamedTuple):
    """The sender's state: the index of its tree, or its copy of the cluster log's ring."""

    time: int
    epoch: Epoch
    payload: bytes


class Update(NamedTuple):
    """An entry of the leader's tree that another member lacks or has in another version."""

    time: int
    epoch: Epoch
    record: Record


class UpdateComplete(NamedTuple):
    """The leader has sent all updates of the round."""

    time: int
    epoch: Epoch


class VerifyRequest(NamedTuple):
    """Request that each member takes the checksum of its tree at this point of the total order."""

    time: int
    epoch: Epoch
    number: int


class Verify(NamedTuple):
    """The requester's checksum, taken when its VERIFY_REQUEST was delivered."""

    time: int
    epoch: Epoch
    number: int
    checksum: bytes  # 32 bytes


StateMessage = SyncStart | State | Update | UpdateComplete | VerifyRequest | Verify
Message = Normal | StateMessage
