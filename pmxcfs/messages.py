"""The vocabulary of the cluster: what nodes tell one another, and the record of an entry.

Every change of the tree is a ``Mutation``, whether it was asked for on this node or came from a
peer. A path has no leading slash; it is text by ``surrogateescape``, because names are bytes for
everybody else. Times are whole seconds since 1970. What is here says nothing of bytes: ``_cpg`` has
the layouts. Contract: docs/spec/cluster.md, "Messages".
"""

from enum import Enum, IntEnum
from typing import NamedTuple

MAX_FILE_SIZE = 1 << 20  # bytes in one file; checked where a write is issued and where it arrives
MAX_TOTAL_SIZE = 128 << 20  # bytes of content in the tree; checked only where a change is issued
MAX_ENTRIES = 262144  # files and directories in the tree; likewise
MAX_NEW_NAME = 255  # bytes in a name that is issued here; peers may bring longer ones
# Of entries in the cluster log; the numbers are syslog's.
PRIORITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
MAX_TIME = (1 << 32) - 1  # the last second that an mtime can hold


class EntryType(IntEnum):
    """What an entry is, in the numbers of the database (those of dirent's d_type)."""

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
    """Put *data* at *offset*; with *truncate* the file ends behind it afterwards."""

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
    """Move *path* to *to*, replacing what stands there."""

    path: str
    to: str


class Create(NamedTuple):
    """Make an empty file."""

    path: str


class Mtime(NamedTuple):
    """Set the modification time, in seconds."""

    path: str
    mtime: int


class Unlock(NamedTuple):
    """Remove the lock at *path* if it still has this entry checksum (32 bytes)."""

    path: str
    checksum: bytes


Mutation = Write | Mkdir | Delete | Rename | Create | Mtime | Unlock


class Record(NamedTuple):
    """One entry as the database and UPDATE messages carry it. The root is inode 0, name empty."""

    inode: int
    parent: int
    version: int
    writer: int
    mtime: int
    type: int
    name: bytes
    data: bytes | None  # None for directories; a file's may be None when it is empty


# The cluster as corosync's configuration has it.


class ClusterNode(NamedTuple):
    """A node of the configuration; ``nodelist.node.N`` of corosync.conf."""

    name: str
    nodeid: int
    address: str  # ring0_addr as written: an address, or a name that need not resolve
    votes: int


class ClusterConfig(NamedTuple):
    """The configuration that corosync runs with."""

    name: str  # totem.cluster_name
    version: int  # totem.config_version
    nodes: tuple[ClusterNode, ...]  # by rising nodeid; names and ids are unique


# Between nodes.


class Group(Enum):
    """A process group of corosync's. Both run the same state machine over other content."""

    TREE = "pve_dcdb_v1", 1
    STATUS = "pve_kvstore_v1", 0

    def __init__(self, cpg_name: str, protocol: int) -> None:
        self.cpg_name = cpg_name
        self.protocol = protocol  # the version that each message in the group states


class Member(NamedTuple):
    """One process in a group. Members are ordered by node, then by process."""

    nodeid: int
    pid: int

    def __str__(self) -> str:
        return f"{self.nodeid}/{self.pid}"


class Epoch(NamedTuple):
    """Which round of synchronization a message was made for."""

    number: int  # its maker's counter of membership changes
    time: int
    nodeid: int  # its maker
    pid: int


class UnlockRequest(NamedTuple):
    """Ask the member with the lowest node id to remove a lock, if that has expired there."""

    path: str
    checksum: bytes  # of the entry, 32 bytes


class SetKey(NamedTuple):
    """Set a key of the sender's in the status group; an empty value removes it."""

    key: str
    value: bytes


class LogEntry(NamedTuple):
    """One entry of the cluster log. Strings are bytes as they travel, without their NUL."""

    uid: int  # the sender's counter
    time: int
    node_digest: int  # 64-bit FNV-1a of the string and its NUL
    ident_digest: int
    pid: int
    priority: int  # 0 to 7, as syslog's
    node: bytes
    ident: bytes
    tag: bytes
    message: bytes
    trailing: bytes = bytes(4)  # the header counts 4 bytes more than it has; kept as received


Body = Mutation | UnlockRequest | SetKey | LogEntry


class Normal(NamedTuple):
    """A change, in the group's total order."""

    time: int  # the sender's clock
    serial: int  # the sender's own counter, from 1 (the "count" of cluster.md)
    body: Body


class SyncStart(NamedTuple):
    """Begin a round."""

    time: int
    epoch: Epoch


class State(NamedTuple):
    """What the sender has: the tree's index, or the ring of the cluster log."""

    time: int
    epoch: Epoch
    payload: bytes


class Update(NamedTuple):
    """An entry of the leader's that another member has otherwise or not at all."""

    time: int
    epoch: Epoch
    record: Record


class UpdateComplete(NamedTuple):
    """All updates of the round were sent."""

    time: int
    epoch: Epoch


class VerifyRequest(NamedTuple):
    """Everyone: remember your checksum at this point of the order."""

    time: int
    epoch: Epoch
    number: int


class Verify(NamedTuple):
    """The checksum that the requester had there."""

    time: int
    epoch: Epoch
    number: int
    checksum: bytes  # 32 bytes


StateMessage = SyncStart | State | Update | UpdateComplete | VerifyRequest | Verify
Message = Normal | StateMessage
