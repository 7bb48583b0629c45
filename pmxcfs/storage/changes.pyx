# cython: language_level=3, auto_pickle=False, autotestdict=False
"""The bytes of a CHANGE, the record that every change waits for, without its frame.

Its numbers are small or follow from one another, and most of a message between nodes is a header
that says the same each time. So numbers are of variable length, and of such a message only what
differs is kept: three records of 1 KiB saved through a temporary file take 0.2 KiB less.

There is one way to write a change: what is read is refused if it would be written otherwise. What
is read is untrusted: a length is compared with what is left before it is used.
Contract: docs/spec/storage.md, "Journal". Layout: docs/formats.md, "The journal".
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memchr, memcpy

from pmxcfs.text cimport to_bytes

from pmxcfs._cpg import encode
from pmxcfs.messages import (
    Create, Delete, Group, Kind, Mkdir, Mtime, Normal, Rename, Unlock, Write,
)

cdef enum:  # sizes in bytes
    NUMBERS = 80  # enough for the numbers in front of the process name, or of a message
    HEAD = 24  # header and counter of a message between nodes
    FIELDS = 44  # these and the numbers of a change of the tree
    LONGEST_NAME = 255

cdef enum:
    CHANGE = 1  # kinds of records
    BEFORE = 2
    CHECK = 3
    SAVING = 4
    SAVED = 5
    ADOPTED = 6
    GAP = 7
    NOTES = 8
    WITHOUT_DATA = 9
    BEFORE_NUMBERS = 42  # bytes of the numbers of BEFORE behind its kind
    PRIVATE = 1  # a flag of BEFORE
    VERBATIM = 0  # instead of a subtype: the whole message follows
    SECOND = 1000000000  # nanoseconds

cdef uint64_t LAST_U32 = 0xFFFFFFFF
cdef uint64_t FIRST_SUBTYPE = min(Kind.WRITE, Kind.MTIME)
cdef uint64_t LAST_SUBTYPE = max(Kind.WRITE, Kind.MTIME)
cdef object TREE = Group.TREE
cdef uint64_t PROTOCOL = TREE.protocol
cdef dict SUBTYPES = {
    Write: int(Kind.WRITE), Mkdir: int(Kind.MKDIR), Delete: int(Kind.DELETE),
    Rename: int(Kind.RENAME), Create: int(Kind.CREATE), Mtime: int(Kind.MTIME),
}


cdef struct Numbers:
    # Encoded numbers.
    unsigned char bytes[NUMBERS]
    Py_ssize_t size


cdef struct Parts:
    # A message of which only what differs is kept; the pointers are into the message or the body.
    uint64_t subtype
    uint64_t offset
    uint64_t flags
    const unsigned char *path
    uint64_t path_size  # without the NUL behind it
    const unsigned char *to
    uint64_t to_size  # with the NUL behind it, 0 for none
    const unsigned char *data
    uint64_t data_size


cdef struct Input:
    # What is left of a body.
    const unsigned char *at
    uint64_t left


cdef struct Named:
    # What a change says of its entry; the pointers are into the body.
    uint64_t time_ns
    uint64_t inode
    const unsigned char *path
    uint64_t path_size
    bint has_other  # path: the first *shared* bytes of *path*, and *rest*
    uint64_t shared
    const unsigned char *rest
    uint64_t rest_size


cdef int put(Numbers *numbers, uint64_t value) noexcept:
    """Append a number, 7 bits a byte, the low ones first; all bytes but the last have bit 7."""
    while value > 0x7F:
        numbers.bytes[numbers.size] = <unsigned char>(value & 0x7F | 0x80)
        numbers.size += 1
        value >>= 7
    numbers.bytes[numbers.size] = <unsigned char>value
    numbers.size += 1
    return 0


cdef int put_signed(Numbers *numbers, uint64_t value) noexcept:
    """Append a difference that may be negative, as the number 0, 1, 2, 3 … for 0, -1, 1, -2 …"""
    return put(numbers, value << 1 ^ (0 - (value >> 63)))


cdef uint64_t little(const unsigned char *at, int width) noexcept:
    """Read *width* little-endian bytes."""
    cdef uint64_t value = 0
    cdef int index
    for index in range(width):
        value |= <uint64_t>at[index] << (8 * index)
    return value


cdef int put_little(unsigned char *at, uint64_t value, int width) noexcept:
    """Store *value* as *width* little-endian bytes, 8 at most."""
    cdef int index
    for index in range(width):
        at[index] = <unsigned char>(value >> (8 * index) & 0xFF)
    return 0


cdef bint analyze(const unsigned char *at, uint64_t size, uint64_t mtime, Parts *parts) noexcept:
    """Find the parts of a message; return whether they and *mtime* say all of it."""
    if size < FIELDS or little(at, 2) != 0 or little(at + 4, 4) != PROTOCOL:
        return False
    parts.subtype = little(at + 2, 2)
    if not FIRST_SUBTYPE <= parts.subtype <= LAST_SUBTYPE:
        return False
    if little(at + 8, 4) != mtime or little(at + 12, 4) != 0 or little(at + 16, 8) != 0:
        return False
    cdef uint64_t path_size = little(at + HEAD + 8, 4)
    cdef uint64_t left = size - FIELDS
    parts.data_size = little(at + HEAD, 4)
    parts.offset = little(at + HEAD + 4, 4)
    parts.to_size = little(at + HEAD + 12, 4)
    parts.flags = little(at + HEAD + 16, 4)
    parts.path = at + FIELDS
    if not 0 < path_size <= left or parts.path[path_size - 1]:
        return False
    parts.path_size = path_size - 1
    parts.to = parts.path + path_size
    left -= path_size
    if parts.to_size > left or (parts.to_size and parts.to[parts.to_size - 1]):
        return False
    parts.data = parts.to + parts.to_size
    return parts.data_size == left - parts.to_size


cdef uint64_t shared_by(const Parts *parts) noexcept:
    """Return the bytes with which both paths begin."""
    cdef uint64_t size = 0, most = min(parts.path_size, parts.to_size - 1)
    while size < most and parts.path[size] == parts.to[size]:
        size += 1
    return size


cdef unsigned char *copy(unsigned char *to, const void *source, uint64_t size) noexcept:
    memcpy(to, source, <size_t>size)
    return to + size


cdef int put_head(
    Numbers *head,
    uint64_t version,
    uint32_t writer,
    uint32_t mtime,
    uint64_t time_ns,
    uint64_t inode,
    uint32_t pid,
    uint32_t uid,
    uint32_t login_uid,
    uint64_t name_size,
) noexcept:
    """Put what is in front of the process name."""
    head.bytes[0] = CHANGE
    head.size = 1
    put(head, version)
    put(head, writer)
    put_little(head.bytes + head.size, time_ns, 8)
    head.size += 8
    put_signed(head, mtime - time_ns // SECOND)
    put_signed(head, version - inode)
    put(head, pid)
    put(head, uid)
    put(head, <uint32_t>(login_uid + 1))  # so that none, the largest number, takes a byte
    return put(head, name_size)


cdef bytes body_of(
    const Numbers *head, const char *process, uint64_t name_size, const Parts *parts, bint is_short
):
    """Return the body of a CHANGE; unless *is_short*, its message is the *data* of *parts*."""
    cdef Numbers names
    cdef uint64_t shared = 0, rest = 0
    names.size = 0
    if is_short:
        put(&names, parts.subtype)
        put(&names, parts.offset)
        put(&names, parts.flags)
        put(&names, parts.path_size)
        put(&names, parts.to_size)
        if parts.to_size:
            shared = shared_by(parts)
            rest = parts.to_size - 1 - shared
            put(&names, shared)
    else:
        put(&names, VERBATIM)
    cdef uint64_t size = <uint64_t>(head.size + names.size) + name_size
    size += parts.path_size + rest + parts.data_size
    cdef bytes body = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
    cdef unsigned char *at = <unsigned char *>PyBytes_AS_STRING(body)
    at = copy(at, head.bytes, <uint64_t>head.size)
    at = copy(at, process, name_size)
    at = copy(at, names.bytes, <uint64_t>names.size)
    at = copy(at, parts.path, parts.path_size)
    at = copy(at, parts.to + shared, rest)
    copy(at, parts.data, parts.data_size)
    return body


cdef uint64_t size_of_name(bytes process) noexcept:
    return min(<uint64_t>PyBytes_GET_SIZE(process), <uint64_t>LONGEST_NAME)


def pack_change(
    uint64_t version,
    uint32_t writer,
    uint32_t mtime,
    uint64_t time_ns,
    uint64_t inode,
    uint32_t pid,
    uint32_t uid,
    uint32_t login_uid,
    bytes process not None,
    bytes message not None,
):
    """Return the body of a CHANGE. A process name is cut to 255 bytes.

    Raises OverflowError if a number is too large for its field.
    """
    cdef Numbers head
    cdef Parts parts
    cdef const unsigned char *raw = <const unsigned char *>PyBytes_AS_STRING(message)
    cdef uint64_t name_size = size_of_name(process)
    put_head(&head, version, writer, mtime, time_ns, inode, pid, uid, login_uid, name_size)
    cdef bint is_short = analyze(raw, <uint64_t>len(message), mtime, &parts)
    if not is_short:
        parts.path_size = parts.to_size = 0
        parts.path = parts.to = parts.data = raw
        parts.data_size = <uint64_t>len(message)
    return body_of(&head, PyBytes_AS_STRING(process), name_size, &parts, is_short)


cpdef bytes pack_mutation(
    uint64_t version,
    uint32_t writer,
    uint32_t mtime,
    uint64_t time_ns,
    uint64_t inode,
    caller,
    mutation,
):
    """Return what ``pack_change`` makes of the message of *mutation*, which need not be made.

    *caller* is pid, uid, login uid and process name. Raises OverflowError if a number is too large
    for its field, and ValueError if a path contains a NUL.
    """
    cdef Numbers head
    cdef Parts parts
    cdef bytes path, to = b"", data = b"", process
    pid, uid, login_uid, process = caller
    cdef type kind = type(mutation)
    if kind is Unlock:  # its message is kept whole
        message = encode(Normal(mtime, 0, mutation), group=TREE)
        return pack_change(
            version, writer, mtime, time_ns, inode, pid, uid, login_uid, process, message)
    path = without_nul(to_bytes(mutation.path))
    parts.subtype = SUBTYPES[kind]
    parts.offset = parts.flags = parts.to_size = 0
    if kind is Write:
        data = mutation.data
        parts.offset, parts.flags = <uint32_t>mutation.offset, 1 if mutation.truncate else 0
    elif kind is Rename:
        to = without_nul(to_bytes(mutation.to))
        parts.to_size = <uint64_t>PyBytes_GET_SIZE(to) + 1
    elif kind is Mtime:
        parts.offset = <uint32_t>mutation.mtime  # as between nodes
    if process is None or data is None:
        raise TypeError("a process name and content are bytes")
    parts.path = <const unsigned char *>PyBytes_AS_STRING(path)
    parts.path_size = <uint64_t>PyBytes_GET_SIZE(path)
    parts.to = <const unsigned char *>PyBytes_AS_STRING(to)
    parts.data = <const unsigned char *>PyBytes_AS_STRING(data)
    parts.data_size = <uint64_t>PyBytes_GET_SIZE(data)
    cdef uint64_t name_size = size_of_name(process)
    put_head(&head, version, writer, mtime, time_ns, inode, pid, uid, login_uid, name_size)
    return body_of(&head, PyBytes_AS_STRING(process), name_size, &parts, True)


cdef bytes without_nul(bytes text):
    if memchr(PyBytes_AS_STRING(text), 0, <size_t>PyBytes_GET_SIZE(text)) != NULL:
        raise ValueError("a name or path can't contain a NUL")
    return text


cdef const unsigned char *take(Input *source, uint64_t size) except NULL:
    if size > source.left:
        raise ValueError(f"{size} bytes wanted, {source.left} left")
    cdef const unsigned char *here = source.at
    source.at += size
    source.left -= size
    return here


cdef bytes text(const unsigned char *at, uint64_t size):
    return PyBytes_FromStringAndSize(<const char *>at, <Py_ssize_t>size)


cdef uint64_t number(Input *source, uint64_t most) except? 0:
    """Read a number of at most *most*."""
    cdef uint64_t value = 0, bits
    cdef int shift = 0
    while True:
        bits = take(source, 1)[0]
        if shift == 63 and bits > 1:
            raise ValueError("a number has more than 64 bits")
        value |= (bits & 0x7F) << shift
        if bits < 0x80:
            break
        shift += 7
    if shift and not bits:
        raise ValueError("a number is longer than it need be")
    if value > most:
        raise ValueError(f"{value} is more than {most}")
    return value


cdef uint64_t signed_number(Input *source) except? 0:
    cdef uint64_t value = number(source, 0xFFFFFFFFFFFFFFFF)
    return value >> 1 ^ (0 - (value & 1))


def unpack_change(bytes body not None):
    """Return what ``pack_change`` was given. The kind is for the caller to check.

    Raises ValueError if it would not write these bytes.
    """
    cdef Input source
    source.at = <const unsigned char *>PyBytes_AS_STRING(body)
    source.left = <uint64_t>len(body)
    take(&source, 1)
    cdef uint64_t version = number(&source, 0xFFFFFFFFFFFFFFFF)
    cdef uint64_t writer = number(&source, LAST_U32)
    cdef uint64_t time_ns = little(take(&source, 8), 8)
    cdef uint64_t mtime = time_ns // SECOND + signed_number(&source)
    cdef uint64_t inode = version - signed_number(&source)
    cdef uint64_t pid = number(&source, LAST_U32)
    cdef uint64_t uid = number(&source, LAST_U32)
    cdef uint32_t login_uid = <uint32_t>(number(&source, LAST_U32) - 1)
    cdef uint64_t name_size = number(&source, LONGEST_NAME)
    cdef bytes process = text(take(&source, name_size), name_size)
    if mtime > LAST_U32:
        raise ValueError("the mtime has more than 32 bits")
    message = unpack_message(&source, mtime)
    return version, writer, mtime, time_ns, inode, pid, uid, login_uid, process, message


def last_naming(bytes content not None, list bounds not None, Py_ssize_t number, frozenset names,
                tuple below):
    """Return the index of the last record before *number* that may name a path; -1 if none does.

    *bounds* are those of the records' bodies in *content*. A path is one of *names*, or begins with
    one of *below*. Adoptions and gaps may name any, and what can't be decoded as far as that none.
    """
    cdef Py_ssize_t start, end
    cdef Input source
    cdef const unsigned char *base = <const unsigned char *>PyBytes_AS_STRING(content)
    while number > 0:
        number -= 1
        start, end = bounds[number]
        if not 0 <= start < end <= len(content):
            raise ValueError("a record is outside of the content")
        source.at = base + start
        source.left = <uint64_t>(end - start)
        try:
            if may_name(&source, names, below):
                return number
        except ValueError:
            pass
    return -1


cdef bint may_name(Input *source, frozenset names, tuple below) except -1:
    cdef unsigned char kind = take(source, 1)[0]
    cdef uint64_t size
    if kind == ADOPTED or kind == GAP:
        return True
    if kind == BEFORE:
        take(source, BEFORE_NUMBERS)
        take(source, little(take(source, 2), 2))  # the name
        size = little(take(source, 2), 2)
        return is_among(text(take(source, size), size), names, below)
    if kind == WITHOUT_DATA:
        take(source, 4)
    elif kind != CHANGE:
        return False
    return change_may_name(source, names, below)


cdef bint change_may_name(Input *source, frozenset names, tuple below) except -1:
    cdef Named named
    if not read_names(source, &named):
        return True
    if is_among(text(named.path, named.path_size), names, below):
        return True
    return named.has_other and is_among(other_path(&named), names, below)


cdef bint read_names(Input *source, Named *named) except -1:
    """Read a change behind its kind, as far as its paths; False if its message is kept whole."""
    cdef int _index
    cdef uint64_t to_size
    cdef uint64_t version = number(source, 0xFFFFFFFFFFFFFFFF)
    number(source, LAST_U32)
    named.time_ns = little(take(source, 8), 8)
    signed_number(source)
    named.inode = version - signed_number(source)
    for _index in range(3):
        number(source, LAST_U32)
    take(source, number(source, LONGEST_NAME))
    if number(source, LAST_SUBTYPE) == VERBATIM:
        return False
    for _index in range(2):
        number(source, LAST_U32)
    named.path_size = number(source, LAST_U32 - 1)
    to_size = number(source, LAST_U32)
    named.has_other = to_size > 0
    named.shared = number(source, to_size - 1) if to_size else 0
    named.path = take(source, named.path_size)
    if named.shared > named.path_size:
        raise ValueError("the paths share more bytes than the first one has")
    named.rest_size = to_size - 1 - named.shared if to_size else 0
    named.rest = take(source, named.rest_size)
    return True


cdef bytes other_path(const Named *named):
    return text(named.path, named.shared) + text(named.rest, named.rest_size)


def outlines(bytes content not None, list bounds not None):
    """Return (is_change, time_ns, inode, is_private, path, other path, has_content) of records.

    *bounds* are those of the records' bodies in *content*. Of records that are of no entry there is
    nothing. Return None if that can't be told of a record without more than a glance at it.
    """
    cdef Py_ssize_t start, end
    cdef Input source
    cdef const unsigned char *base = <const unsigned char *>PyBytes_AS_STRING(content)
    cdef list found = []
    cdef tuple outline
    for start, end in bounds:
        if not 0 <= start < end <= len(content):
            raise ValueError("a record is outside of the content")
        source.at = base + start
        source.left = <uint64_t>(end - start)
        if not is_of_entry(source.at[0]):
            continue
        try:
            outline = outline_of(&source)
        except ValueError:
            return None
        if outline is None:
            return None
        found.append(outline)
    return found


cdef bint is_of_entry(unsigned char kind) noexcept:
    return kind not in (CHECK, SAVING, SAVED, NOTES)


cdef tuple outline_of(Input *source):
    cdef Named named
    cdef unsigned char kind = take(source, 1)[0]
    cdef const unsigned char *numbers
    cdef uint64_t size
    cdef bytes path, other = None
    if kind == BEFORE:
        numbers = take(source, BEFORE_NUMBERS)
        take(source, little(take(source, 2), 2))  # the name
        size = little(take(source, 2), 2)
        path = text(take(source, size), size)
        return False, 0, little(numbers + 1, 8), (numbers[0] & PRIVATE) != 0, path, None, True
    if kind != CHANGE or not read_names(source, &named):
        return None
    path = text(named.path, named.path_size)
    if named.has_other:
        other = other_path(&named)
    if b"\0" in path or (other is not None and b"\0" in other):
        return None  # the message is not one that was applied
    return True, named.time_ns, named.inode, False, path, other, source.left > 0


cdef bint is_among(bytes path, frozenset names, tuple below) except -1:
    return path in names or path.startswith(below)


cdef bytes unpack_message(Input *source, uint64_t mtime):
    """Return the message as between nodes; it takes all that is left."""
    cdef Parts parts
    cdef uint64_t subtype = number(source, LAST_SUBTYPE)
    if subtype == VERBATIM:
        if analyze(source.at, source.left, mtime, &parts):
            raise ValueError("the message is longer than it need be")
        return text(source.at, source.left)
    parts.subtype = subtype
    parts.offset = number(source, LAST_U32)
    parts.flags = number(source, LAST_U32)
    parts.path_size = number(source, LAST_U32 - 1)
    parts.to_size = number(source, LAST_U32)
    cdef uint64_t shared = number(source, parts.to_size - 1) if parts.to_size else 0
    cdef uint64_t rest = parts.to_size - 1 - shared if parts.to_size else 0
    parts.path = take(source, parts.path_size)
    if shared > parts.path_size:
        raise ValueError("the paths share more bytes than the first one has")
    cdef const unsigned char *behind = take(source, rest)
    if rest and shared < parts.path_size and behind[0] == parts.path[shared]:
        raise ValueError("the second path repeats bytes of the first one")
    parts.data = source.at
    parts.data_size = source.left
    return assembled(&parts, mtime, shared, behind, rest)


cdef bytes assembled(
    const Parts *parts,
    uint64_t mtime,
    uint64_t shared,
    const unsigned char *behind,
    uint64_t rest,
):
    """Return the message with these parts; its second path ends with *rest* bytes at *behind*."""
    cdef bytes message = PyBytes_FromStringAndSize(
        NULL, <Py_ssize_t>(FIELDS + parts.path_size + 1 + parts.to_size + parts.data_size)
    )
    cdef unsigned char *at = <unsigned char *>PyBytes_AS_STRING(message)
    put_little(at, 0, 2)
    put_little(at + 2, parts.subtype, 2)
    put_little(at + 4, PROTOCOL, 4)
    put_little(at + 8, mtime, 4)
    put_little(at + 12, 0, 4)
    put_little(at + 16, 0, 8)
    put_little(at + HEAD, parts.data_size, 4)
    put_little(at + HEAD + 4, parts.offset, 4)
    put_little(at + HEAD + 8, parts.path_size + 1, 4)
    put_little(at + HEAD + 12, parts.to_size, 4)
    put_little(at + HEAD + 16, parts.flags, 4)
    at = copy(at + FIELDS, parts.path, parts.path_size)
    at[0] = 0
    at += 1
    if parts.to_size:
        at = copy(at, parts.path, shared)
        at = copy(at, behind, rest)
        at[0] = 0
        at += 1
    copy(at, parts.data, parts.data_size)
    return message
