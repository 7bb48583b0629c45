"""A sample of each request that the kernel makes, as it comes through /dev/fuse."""

import struct

HEADER = struct.Struct("<IIQQIIII")  # len, opcode, unique, node, uid, gid, pid, padding
LOOKUP, FORGET, GETATTR, SETATTR, READLINK, MKNOD, MKDIR = 1, 2, 3, 4, 5, 8, 9
UNLINK, RMDIR, RENAME, OPEN, READ, WRITE, STATFS, RELEASE = 10, 11, 12, 14, 15, 16, 17, 18
FSYNC, FLUSH, OPENDIR, READDIR, RELEASEDIR, FSYNCDIR, CREATE = 20, 25, 27, 28, 29, 30, 35
INTERRUPT, BATCH_FORGET, READDIRPLUS, RENAME2, UNKNOWN = 36, 42, 44, 45, 4000

# Opcode, what follows the header, and the fields that it stands for.
SAMPLES: list[tuple[int, bytes, dict[str, object]]] = [
    (LOOKUP, b"name\0", {"name": b"name"}),
    (UNLINK, b"name\0", {"name": b"name"}),
    (RMDIR, b"name\0", {"name": b"name"}),
    (READLINK, b"", {}),
    (STATFS, b"", {}),
    (FORGET, struct.pack("<Q", 7), {"count": 7}),
    (BATCH_FORGET, struct.pack("<II4Q", 2, 0, 5, 1, 6, 3), {"count": 2}),
    (INTERRUPT, struct.pack("<Q", 98), {"interrupted": 98}),
    (GETATTR, struct.pack("<IIQ", 1, 0, 9), {}),
    (
        SETATTR,
        struct.pack("<IIQQQQQQIIIIIIII", 9, 0, 4, 100, 0, 0, 50, 0, 0, 0, 0, 0o640, 0, 1, 2, 0),
        {"valid": 9, "handle": 4, "size": 100, "mtime": 50, "mode": 0o640, "owner": 1, "group": 2},
    ),
    (
        MKNOD,
        struct.pack("<IIII", 0o100644, 3, 0, 0) + b"n\0",
        {"mode": 0o100644, "device": 3, "name": b"n"},
    ),
    (MKDIR, struct.pack("<II", 0o755, 0) + b"n\0", {"mode": 0o755, "name": b"n"}),
    (
        CREATE,
        struct.pack("<IIII", 0o101, 0o644, 0, 0) + b"n\0",
        {"flags": 0o101, "mode": 0o644, "name": b"n"},
    ),
    (
        RENAME,
        struct.pack("<Q", 3) + b"old\0new\0",
        {"new_node": 3, "name": b"old", "new_name": b"new"},
    ),
    (
        RENAME2,
        struct.pack("<QII", 3, 1, 0) + b"old\0new\0",
        {"new_node": 3, "flags": 1, "name": b"old", "new_name": b"new"},
    ),
    (OPEN, struct.pack("<II", 0o2001, 0), {"flags": 0o2001}),
    (OPENDIR, struct.pack("<II", 0, 0), {}),
    (
        READ,
        struct.pack("<QQIIQII", 4, 8, 16, 0, 0, 0, 0),
        {"handle": 4, "offset": 8, "size": 16},
    ),
    (
        READDIRPLUS,
        struct.pack("<QQIIQII", 4, 8, 16, 0, 0, 0, 0),
        {"handle": 4, "offset": 8, "size": 16},
    ),
    (
        WRITE,
        struct.pack("<QQIIQII", 4, 8, 3, 1, 0, 0o2001, 0) + b"abc",
        {"handle": 4, "offset": 8, "write_flags": 1, "flags": 0o2001, "data": b"abc"},
    ),
    (RELEASE, struct.pack("<QIIQ", 4, 0, 0, 0), {"handle": 4}),
    (RELEASEDIR, struct.pack("<QIIQ", 4, 0, 0, 0), {"handle": 4}),
    (FLUSH, struct.pack("<QIIQ", 4, 0, 0, 0), {"handle": 4}),
    (FSYNC, struct.pack("<QII", 4, 0, 0), {"handle": 4}),
    (FSYNCDIR, struct.pack("<QII", 4, 0, 0), {"handle": 4}),
]


def request(opcode: int, body: bytes, *, length: int | None = None) -> bytes:
    """Return a request of the process 1234 for node 77."""
    size = HEADER.size + len(body) if length is None else length
    return HEADER.pack(size, opcode, 99, 77, 1000, 1000, 1234, 0) + body


def structure_size(body: bytes, fields: dict[str, object]) -> int:
    """Return how many bytes of *body* are not of names or data."""
    size = len(body)
    for key, extra in (("name", 1), ("new_name", 1), ("data", 0)):
        found = fields.get(key)
        if isinstance(found, bytes):
            size -= len(found) + extra
    return size
