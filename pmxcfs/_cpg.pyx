# cython: language_level=3, auto_pickle=False, autotestdict=False
"""Binding to libcpg, corosync's closed process groups, and the encoding of messages.

``encode`` and ``decode`` implement the byte layouts. They don't interpret a message or check that
it fits the current state. Bytes from peers are untrusted: every length is compared with the number
of remaining bytes before use, and a message that can't be decoded raises BadMessage.

``Cpg`` is one connection to corosync. libcpg handles are not thread-safe, and libcpg calls block
while corosync is stopped. So one thread owns a ``Cpg``, and libcpg is called without the GIL.
Contract: docs/spec/cluster.md, "Messages".
"""

import threading

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memchr, memcpy, memset

from pmxcfs._cserror cimport CS_DISPATCH_ONE_NONBLOCKING, CS_OK, cs_error_t
from pmxcfs._cserror cimport after_dispatch, before_send, check
from pmxcfs._tuples cimport named
from pmxcfs.text cimport to_bytes, to_text

from pmxcfs.errors import BadMessage, OtherProtocol
from pmxcfs.messages import (
    Create, Delete, EntryType, Epoch, Group, Kind, LogEntry, Member, Mkdir, Mtime, Normal, Record,
    Rename, SetKey, State, SyncStart, Unlock, UnlockRequest, Update, UpdateComplete, Verify,
    VerifyRequest, Write,
)

cdef enum:  # types of messages
    NORMAL = 0
    SYNC_START = 1
    STATE = 2
    UPDATE = 3
    UPDATE_COMPLETE = 4
    VERIFY_REQUEST = 5
    VERIFY = 6

cdef enum:  # subtypes in the status group
    SET_KEY = 1
    LOG = 3

cdef enum:  # sizes in bytes
    HEADER_SIZE = 16
    KEY_SIZE = 256
    CHECKSUM_SIZE = 32
    LOG_TRAILING_SIZE = 4
    MAX_LOG_STRING = 254  # of node, ident and tag: length with NUL is one byte on the wire
    FIXED_SIZE = 96  # at least the size of all numbers of the longest message

cdef uint8_t DIRECTORY = EntryType.DIRECTORY
cdef object TREE = Group.TREE
cdef int WRITE = Kind.WRITE, RENAME = Kind.RENAME, MTIME = Kind.MTIME, UNLOCK = Kind.UNLOCK

cdef dict _TYPES = {
    SyncStart: SYNC_START, State: STATE, Update: UPDATE, UpdateComplete: UPDATE_COMPLETE,
    VerifyRequest: VERIFY_REQUEST, Verify: VERIFY,
}
cdef frozenset _IN_BOTH_GROUPS = frozenset([SYNC_START, STATE])
cdef dict _KINDS = {
    Write: Kind.WRITE, Mkdir: Kind.MKDIR, Delete: Kind.DELETE, Rename: Kind.RENAME,
    Create: Kind.CREATE, Mtime: Kind.MTIME, UnlockRequest: Kind.UNLOCK_REQUEST,
    Unlock: Kind.UNLOCK,
}
cdef dict _BODIES = {int(kind): body for body, kind in _KINDS.items()}


# Encoding.


cdef struct Fixed:
    # The numbers at the start of a message, encoded.
    unsigned char bytes[FIXED_SIZE]
    Py_ssize_t size


cdef int put(Fixed *head, uint64_t value, int width) except -1:
    """Append *value* as *width* little-endian bytes. Raises OverflowError if it is too large."""
    cdef int index
    if width < 8 and value >> (8 * width):
        raise OverflowError(f"{value} does not fit into {width} bytes")
    if head.size + width > FIXED_SIZE:
        raise SystemError("FIXED_SIZE is too small for the numbers of a message")
    for index in range(width):
        head.bytes[head.size + index] = <unsigned char>((value >> (8 * index)) & 0xFF)
    head.size += width
    return 0


cdef bytes finish(Fixed *head, list tail):
    tail.insert(0, PyBytes_FromStringAndSize(<char *>head.bytes, head.size))
    return b"".join(tail)


cpdef bytes encode(object message, object group):
    """Return the bytes of *message* in the format of *group*.

    Raises OverflowError if a number is too large for its field. Raises ValueError if a name or path
    contains a NUL, a string is too long, a checksum does not have 32 bytes, or the group does not
    have such a message.
    """
    cdef Fixed head
    head.size = 0
    cdef type kind = type(message)
    cdef int number = NORMAL if kind is Normal else _TYPES[kind]
    if number != NORMAL and group is not TREE and number not in _IN_BOTH_GROUPS:
        raise ValueError(f"{kind.__name__} does not exist in {group.cpg_name}")
    cdef int subtype = subtype_of(type(message.body), group) if number == NORMAL else 0
    put(&head, <uint64_t>number, 2)
    put(&head, <uint64_t>subtype, 2)
    put(&head, group.protocol, 4)
    put(&head, message.time, 4)
    put(&head, 0, 4)
    if number != NORMAL:
        put_epoch(&head, message.epoch)
        return finish(&head, state_tail(&head, number, message))
    put(&head, message.serial, 8)
    if group is TREE:
        return finish(&head, tree_tail(&head, subtype, message.body))
    return finish(&head, status_tail(&head, subtype, message.body))


cdef int subtype_of(type body, group) except -1:
    if group is TREE and body in _KINDS:
        return _KINDS[body]
    if group is not TREE and body is SetKey:
        return SET_KEY
    if group is not TREE and body is LogEntry:
        return LOG
    raise ValueError(f"{body.__name__} does not exist in {group.cpg_name}")


cdef int put_epoch(Fixed *head, epoch) except -1:
    put(head, epoch.number, 4)
    put(head, epoch.time, 4)
    put(head, epoch.nodeid, 4)
    return put(head, epoch.pid, 4)


cdef list state_tail(Fixed *head, int number, message):
    """Append the numbers of a state message's payload to *head*; return the bytes behind them."""
    if number == STATE:
        return [message.payload]
    if number == UPDATE:
        return record_tail(head, message.record)
    if number == VERIFY_REQUEST or number == VERIFY:
        put(head, message.number, 8)
    return [as_checksum(message.checksum)] if number == VERIFY else []


cdef list record_tail(Fixed *head, record):
    cdef bytes name = terminated(record.name)
    cdef bytes data = record.data or b""
    put(head, record.parent, 8)
    put(head, record.inode, 8)
    put(head, record.version, 8)
    put(head, record.writer, 4)
    put(head, record.mtime, 4)
    put(head, <uint64_t>len(data), 4)
    put(head, <uint64_t>len(name), 4)
    put(head, record.type, 1)
    return [name, data]


cdef list tree_tail(Fixed *head, int kind, body):
    """Append the numbers of a change of the tree to *head*; return the bytes behind them."""
    cdef bytes path = terminated(to_bytes(body.path))
    cdef bint is_write = kind == WRITE
    if not is_write and (kind == UNLOCK or kind == Kind.UNLOCK_REQUEST):
        return [as_checksum(body.checksum), path]
    cdef bytes data = body.data if is_write else b""
    cdef bytes to = terminated(to_bytes(body.to)) if kind == RENAME else b""
    put(head, <uint64_t>len(data), 4)
    # MTIME carries the new mtime in the offset field.
    put(head, body.offset if is_write else body.mtime if kind == MTIME else 0, 4)
    put(head, <uint64_t>len(path), 4)
    put(head, <uint64_t>len(to), 4)
    put(head, 1 if is_write and body.truncate else 0, 4)
    return [path, to, data]


cdef list status_tail(Fixed *head, int subtype, body):
    """Append the numbers of a status message to *head*; return the bytes behind them."""
    if subtype == LOG:
        return log_tail(head, body)
    cdef bytes key = to_bytes(body.key)
    if len(key) >= KEY_SIZE:
        raise ValueError(f"a key has at most {KEY_SIZE - 1} bytes")
    return [terminated(key).ljust(KEY_SIZE, b"\0"), body.value]


cdef list log_tail(Fixed *head, entry):
    cdef list strings = [entry.node, entry.ident, entry.tag, entry.message]
    if any([len(string) > MAX_LOG_STRING for string in strings[:3]]):
        raise ValueError(f"node, ident and tag have at most {MAX_LOG_STRING} bytes")
    if len(entry.trailing) != LOG_TRAILING_SIZE:
        raise ValueError(f"a log entry has {LOG_TRAILING_SIZE} trailing bytes")
    put(head, 0, 8)  # offsets of the previous and next entry, unused outside of a ring
    put(head, entry.uid, 4)
    put(head, entry.time, 4)
    put(head, entry.node_digest, 8)
    put(head, entry.ident_digest, 8)
    put(head, entry.pid, 4)
    put(head, entry.priority, 1)
    for string in strings[:3]:
        put(head, <uint64_t>(len(string) + 1), 1)
    put(head, <uint64_t>(len(entry.message) + 1), 4)
    return [b"\0".join([*strings, entry.trailing])]


cdef bytes terminated(bytes text):
    if b"\0" in text:
        raise ValueError("a name or path can't contain a NUL")
    return text + b"\0"


cdef bytes as_checksum(bytes checksum):
    if len(checksum) != CHECKSUM_SIZE:
        raise ValueError(f"a checksum has {CHECKSUM_SIZE} bytes")
    return checksum


# Decoding.


@cython.final
cdef class _Reader:
    """The remaining bytes of a message. ``take`` checks every length that comes off the wire."""

    cdef bytes _owner
    cdef const unsigned char *_at  # owned by _owner
    cdef Py_ssize_t left

    def __cinit__(self, bytes data not None):
        self._owner = data
        self._at = <const unsigned char *>PyBytes_AS_STRING(data)
        self.left = len(data)

    cdef const unsigned char *take(self, uint64_t size, str what) except NULL:
        """Return a pointer to the next *size* bytes, owned by the reader. *what* is for errors."""
        # The size is never added to anything; a negative length is a huge unsigned one here.
        if size > <uint64_t>self.left:
            raise BadMessage(f"{what}: {size} bytes wanted, {self.left} left")
        cdef const unsigned char *here = self._at
        self._at += size
        self.left -= <Py_ssize_t>size
        return here

    cdef uint64_t number(self, Py_ssize_t width, str what) except? 0:
        """Take a little-endian number of *width* bytes."""
        cdef const unsigned char *here = self.take(<uint64_t>width, what)
        cdef uint64_t value = 0
        cdef Py_ssize_t index
        for index in range(width):
            value |= <uint64_t>here[index] << (8 * index)
        return value

    cdef bytes blob(self, uint64_t size, str what):
        cdef const unsigned char *here = self.take(size, what)
        return PyBytes_FromStringAndSize(<const char *>here, <Py_ssize_t>size)

    cdef bytes rest(self):
        return self.blob(<uint64_t>self.left, "rest")

    cdef bytes string(self, uint64_t size, str what):
        """Take *size* bytes and return the bytes before the first NUL, as C code reads a string."""
        cdef const unsigned char *here = self.take(size, what)
        cdef const unsigned char *nul = <const unsigned char *>memchr(here, 0, <size_t>size)
        if nul == NULL:
            raise BadMessage(f"{what} without NUL")
        return PyBytes_FromStringAndSize(<const char *>here, nul - here)

    cdef int end(self) except -1:
        if self.left:
            raise BadMessage(f"{self.left} unexpected bytes at the end")
        return 0


cpdef object decode(bytes data, group):
    """Decode a message of *group*. Raises OtherProtocol, or BadMessage, which names the field."""
    cdef _Reader reader = _Reader(data)
    if reader.left < HEADER_SIZE:
        raise BadMessage(f"header: {HEADER_SIZE} bytes wanted, {reader.left} left")
    cdef uint64_t number = reader.number(2, "type")
    cdef uint64_t subtype = reader.number(2, "subtype")
    check_protocol(reader.number(4, "protocol version"), group)
    cdef uint64_t time = reader.number(4, "time")
    reader.take(4, "reserved")
    if number == NORMAL:
        serial = reader.number(8, "count")
        body = read_change(reader, subtype) if group is TREE else read_status(reader, subtype)
        return named(Normal, (time, serial, body))
    if number > VERIFY or (group is not TREE and number not in _IN_BOTH_GROUPS):
        raise BadMessage(f"type {number} does not exist in {group.cpg_name}")
    return read_state(reader, number, time, read_epoch(reader))


cdef int check_protocol(uint64_t version, group) except -1:
    cdef uint64_t ours = group.protocol
    if version != ours:
        raise OtherProtocol(
            f"protocol version {version} in group {group.cpg_name}, this node has {ours}",
            is_newer=version > ours,
        )
    return 0


cdef object read_epoch(_Reader reader):
    return Epoch(*[reader.number(4, "epoch") for _ in range(4)])


cdef object read_state(_Reader reader, uint64_t kind, uint64_t time, epoch):
    """Decode the payload of a state message and check that no bytes follow it."""
    if kind == STATE:
        return State(time, epoch, reader.rest())
    if kind == SYNC_START:
        message = SyncStart(time, epoch)
    elif kind == UPDATE:
        message = Update(time, epoch, read_record(reader))
    elif kind == UPDATE_COMPLETE:
        message = UpdateComplete(time, epoch)
    else:
        number = reader.number(8, "id")
        if kind == VERIFY_REQUEST:
            message = VerifyRequest(time, epoch, number)
        else:
            message = Verify(time, epoch, number, reader.blob(CHECKSUM_SIZE, "checksum"))
    reader.end()
    return message


cdef object read_record(_Reader reader):
    parent = reader.number(8, "parent")
    inode = reader.number(8, "inode")
    version = reader.number(8, "version")
    writer = reader.number(4, "writer")
    mtime = reader.number(4, "mtime")
    cdef uint64_t size = reader.number(4, "size")
    cdef uint64_t name_size = reader.number(4, "name length")
    cdef uint64_t type_ = reader.number(1, "type of entry")
    name = reader.string(name_size, "name")
    data = None if type_ == DIRECTORY and size == 0 else reader.blob(size, "data")
    return Record(inode, parent, version, writer, mtime, type_, name, data)


cdef object read_change(_Reader reader, uint64_t kind):
    """Decode a change of the tree."""
    body = _BODIES.get(kind)
    if body is None:
        raise BadMessage(f"subtype {kind} does not exist in {TREE.cpg_name}")
    if body is Unlock or body is UnlockRequest:
        checksum = reader.blob(CHECKSUM_SIZE, "checksum")
        return body(to_text(reader.string(<uint64_t>reader.left, "path")), checksum)
    cdef uint64_t size = reader.number(4, "size")
    cdef uint64_t offset = reader.number(4, "offset")
    cdef uint64_t path_size = reader.number(4, "path length")
    cdef uint64_t to_size = reader.number(4, "length of the new path")
    cdef bint truncate = reader.number(4, "flags") != 0
    path = to_text(reader.string(path_size, "path"))
    to = None
    if to_size or body is Rename:
        to = to_text(reader.string(to_size, "new path"))
    data = reader.blob(size, "data")
    reader.end()
    if body is Write:
        return named(Write, (path, offset, data, truncate))
    if body is Rename:
        return named(Rename, (path, to))
    return named(body, (path, offset) if body is Mtime else (path,))


cdef object read_status(_Reader reader, uint64_t subtype):
    """Decode the body of a message of the status group."""
    if subtype == SET_KEY:
        key = to_text(reader.string(KEY_SIZE, "key"))
        return SetKey(key, reader.rest())
    if subtype == LOG:
        return read_log_entry(reader)
    raise BadMessage(f"subtype {subtype} does not exist in the status group")


cdef object read_log_entry(_Reader reader):
    """Decode an entry of the cluster log. Its strings may have NULs before the final one."""
    reader.take(8, "offsets")  # of the previous and next entry in the sender's ring
    uid = reader.number(4, "uid")
    time = reader.number(4, "time of the entry")
    node_digest = reader.number(8, "digest of the node")
    ident_digest = reader.number(8, "digest of the ident")
    pid = reader.number(4, "pid")
    priority = reader.number(1, "priority")
    sizes = [reader.number(1, f"length of the {name}") for name in ("node", "ident", "tag")]
    sizes.append(reader.number(4, "length of the message"))
    node, ident, tag, message = [read_log_string(reader, size) for size in sizes]
    trailing = reader.blob(LOG_TRAILING_SIZE, "trailing bytes")
    reader.end()
    return LogEntry(
        uid, time, node_digest, ident_digest, pid, priority, node, ident, tag, message, trailing
    )


cdef bytes read_log_string(_Reader reader, uint64_t size):
    cdef bytes text = reader.blob(size, "string")
    if not text.endswith(b"\0"):
        raise BadMessage("string of a log entry does not end with NUL")
    return text[:-1]


# The binding.

# libqb allocates handles without a lock. If two threads connect at the same time, one can lose its
# handle, and corosync keeps that connection as a member that never reads.
cdef object _initialize_lock = threading.Lock()


@cython.final
cdef class Cpg:
    """One connection to corosync, used by one thread. ``dispatch_one`` calls *sink*'s methods.

    Every method raises ClusterError (or a subclass) if libcpg fails, and ValueError if not
    connected. After ``Disconnected``, and to join again after a leave, create a new object.
    """

    cdef cpg_handle_t _handle
    cdef int _fd  # owned by the library
    cdef bint _is_connected
    cdef bint _is_closed
    cdef bint _was_called  # libcpg ran a callback in the current dispatch
    cdef object _sink
    cdef object _raised  # exception of the sink; the current dispatch_one raises it

    def __init__(self, sink not None):
        self._sink = sink

    def __dealloc__(self):
        self._finalize()

    def connect(self):
        """Connect to corosync. Blocks while corosync is stopped."""
        cdef cpg_model_v1_data_t model
        cdef cs_error_t status
        cdef cpg_handle_t handle = 0
        cdef void *context = <void *>self  # borrowed: the object outlives its handle
        if self._is_connected or self._is_closed:
            raise ValueError("connect can be called only once")
        memset(&model, 0, sizeof(model))
        model.model = CPG_MODEL_V1
        model.cpg_deliver_fn = on_deliver
        model.cpg_confchg_fn = on_confchg
        model.cpg_totem_confchg_fn = on_ring
        with _initialize_lock:
            with nogil:
                status = cpg_model_initialize(
                    &handle, CPG_MODEL_V1, <cpg_model_data_t *>&model, context)
        check(status, "cpg_initialize")
        self._handle = handle
        self._is_connected = True
        check(cpg_fd_get(self._handle, &self._fd), "cpg_fd_get")

    def join(self, str name not None):
        """Become a member of the group. Blocks."""
        self._change_membership(cpg_join, name, "cpg_join")

    def leave(self, str name not None):
        """Ask to leave the group; a membership change without this member follows. Blocks."""
        self._change_membership(cpg_leave, name, "cpg_leave")

    def mcast(self, bytes data not None):
        """Multicast *data* to the group, in the total order of the group. Can block.

        A message that needs fragments blocks up to 10 s while corosync's buffers are full. Raises
        TryAgain (buffers full, or many messages unread) and Interrupted; then nothing was sent.
        """
        cdef iovec part
        cdef cs_error_t status
        self._ensure_connected()
        before_send(self._fd, "cpg_mcast_joined")
        part.iov_base, part.iov_len = <void *>PyBytes_AS_STRING(data), <size_t>len(data)
        with nogil:
            status = cpg_mcast_joined(self._handle, CPG_TYPE_AGREED, &part, 1)
        check(status, "cpg_mcast_joined")

    def dispatch_one(self):
        """Take one event and call the sink; return False if there was none. Does not block.

        A fragment of a message gives True without a call. Raises what the sink raises.
        """
        cdef cs_error_t status
        self._ensure_connected()
        self._was_called = False
        with nogil:
            status = cpg_dispatch(self._handle, CS_DISPATCH_ONE_NONBLOCKING)
        raised, self._raised = self._raised, None
        if raised is not None:
            raise raised
        return after_dispatch(status, "cpg_dispatch", self._fd, self._was_called) != 0

    def fileno(self):
        """Return the file descriptor that is readable while an event is pending."""
        self._ensure_connected()
        return self._fd

    def local_nodeid(self):
        """Return this node's id. Blocks."""
        cdef unsigned int nodeid = 0
        cdef cs_error_t status
        self._ensure_connected()
        with nogil:
            status = cpg_local_get(self._handle, &nodeid)
        check(status, "cpg_local_get")
        return nodeid

    def max_message_size(self):
        """Return the largest size in bytes of a message that is sent without fragments."""
        cdef uint32_t size = 0
        self._ensure_connected()
        check(cpg_max_atomic_msgsize_get(self._handle, &size), "cpg_max_atomic_msgsize_get")
        return size

    def close(self):
        """Close the connection, which ends the membership. Blocks. Idempotent."""
        self._is_closed = True
        self._finalize()

    cdef int _change_membership(self, membership_fn_t change, str name, str call) except -1:
        cdef cpg_name group
        cdef cs_error_t status
        self._ensure_connected()
        set_name(&group, name)
        with nogil:
            status = change(self._handle, &group)
        return check(status, call)

    cdef int _ensure_connected(self) except -1:
        if not self._is_connected:
            raise ValueError("closed" if self._is_closed else "not connected")
        return 0

    cdef void _finalize(self) noexcept:
        if self._is_connected:
            self._is_connected = False
            with nogil:
                cpg_finalize(self._handle)  # the handle is invalid afterwards, even on an error


cdef int set_name(cpg_name *group, str name) except -1:
    """Fill in the name of a group; the length includes the NUL. Raises ValueError."""
    cdef bytes raw = terminated(to_bytes(name))
    if len(raw) > CPG_MAX_NAME_LENGTH:
        raise ValueError(f"a group's name has fewer than {CPG_MAX_NAME_LENGTH} bytes")
    memset(group, 0, sizeof(cpg_name))
    memcpy(group.value, PyBytes_AS_STRING(raw), <size_t>len(raw))
    group.length = <uint32_t>len(raw)
    return 0


cdef Cpg owner_of(cpg_handle_t handle):
    """Return the Cpg of *handle*, and record that a callback ran."""
    cdef void *context = NULL
    if cpg_context_get(handle, &context) != CS_OK or context == NULL:
        raise SystemError("libcpg ran a callback for an unknown handle")
    cdef Cpg owner = <Cpg>context
    owner._was_called = True
    return owner


cdef void on_deliver(cpg_handle_t handle, const cpg_name *group, uint32_t nodeid, uint32_t pid,
                     void *msg, size_t msg_len) noexcept with gil:
    cdef Cpg owner = owner_of(handle)
    try:  # msg is on the stack of cpg_dispatch: copy it
        data = PyBytes_FromStringAndSize(<char *>msg, <Py_ssize_t>msg_len)
        owner._sink.on_deliver(named(Member, (nodeid, pid)), data)
    except BaseException as error:  # C code must not see it
        owner._raised = error


cdef void on_confchg(cpg_handle_t handle, const cpg_name *group,
                     const cpg_address *members, size_t member_count,
                     const cpg_address *left, size_t left_count,
                     const cpg_address *joined, size_t joined_count) noexcept with gil:
    cdef Cpg owner = owner_of(handle)
    try:
        owner._sink.on_confchg(
            members_of(members, member_count), members_of(left, left_count),
            members_of(joined, joined_count),
        )
    except BaseException as error:  # C code must not see it
        owner._raised = error


cdef void on_ring(cpg_handle_t handle, cpg_ring_id ring, uint32_t count,
                  const uint32_t *members) noexcept with gil:
    owner_of(handle)


cdef list members_of(const cpg_address *addresses, size_t count):
    return [Member(addresses[index].nodeid, addresses[index].pid) for index in range(count)]
