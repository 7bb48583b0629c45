from pmxcfs.messages import Mutation

__pyx_capi__: dict[str, object]  # the C interface, for cimport

def pack_change(
    version: int,
    writer: int,
    mtime: int,
    time_ns: int,
    inode: int,
    pid: int,
    uid: int,
    login_uid: int,
    process: bytes,
    message: bytes,
) -> bytes: ...
def pack_mutation(
    version: int,
    writer: int,
    mtime: int,
    time_ns: int,
    inode: int,
    caller: tuple[int, int, int, bytes],
    mutation: Mutation,
) -> bytes: ...
def last_naming(
    content: bytes,
    bounds: list[tuple[int, int]],
    number: int,
    names: frozenset[bytes],
    below: tuple[bytes, ...],
) -> int: ...
def outlines(
    content: bytes, bounds: list[tuple[int, int]]
) -> list[tuple[bool, int, int, bool, bytes, bytes | None, bool]] | None: ...
def unpack_change(
    body: bytes,
) -> tuple[int, int, int, int, int, int, int, int, bytes, bytes]: ...
