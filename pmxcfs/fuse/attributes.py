"""What handlers answer and get, for every session: attributes, wanted attributes, usage, callers.

A session translates them to and from the kernel's or a library's structures.
Contract: docs/spec/filesystem.md, "Names, owners, modes".
"""

FOREVER = 365 * 86400  # seconds, as a cache timeout; changes are invalidated explicitly


class Attributes:
    """The attributes of an object, and the seconds for which the kernel may keep them.

    Without *node* it is the answer of a look-up of nothing, which the kernel may keep, too.
    """

    def __init__(
        self, node: int = 0, mode: int = 0, size: int = 0, time: int = 0, gid: int = 0
    ) -> None:
        self.node = node
        self.mode = mode  # st_mode
        self.size = size  # bytes
        self.time = time  # seconds since 1970: atime, mtime and ctime
        self.gid = gid
        self.nlink = 1
        self.name_seconds = FOREVER  # for which the name leads to this node
        self.seconds = FOREVER  # for which the attributes are these


class Wanted:
    """The attributes that a request sets; None: unchanged."""

    def __init__(
        self,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        mtime: int | None = None,
    ) -> None:
        self.mode = mode  # permission bits, perhaps with the type
        self.uid = uid
        self.gid = gid
        self.size = size  # bytes
        self.mtime = mtime  # seconds since 1970


class Requester:
    """The process that makes a request; pid 0: the kernel itself, or not known."""

    def __init__(self, pid: int, uid: int) -> None:
        self.pid = pid
        self.uid = uid


class Statistics:
    """The answer of statfs(2): sizes in blocks of *block_size* bytes, and numbers of entries."""

    def __init__(
        self,
        *,
        block_size: int,
        blocks: int,
        free_blocks: int,
        entries: int,
        free_entries: int,
        name_size: int,
    ) -> None:
        self.block_size = block_size
        self.blocks = blocks
        self.free_blocks = free_blocks
        self.entries = entries
        self.free_entries = free_entries
        self.name_size = name_size  # bytes of a name at most
