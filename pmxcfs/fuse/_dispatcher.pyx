# cython: language_level=3, auto_pickle=False, autotestdict=False
"""The native sessions' way from a decoded request to the handlers, and back to the reply's bytes.

Contract: docs/spec/session.md, "Answers".
"""

from libc.errno cimport EINVAL, ENOSYS, EPERM
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from posix.fcntl cimport O_ACCMODE, O_APPEND, O_RDONLY, O_TRUNC
from posix.stat cimport S_IFMT, S_IFREG

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from pmxcfs.fuse._abi cimport *
from pmxcfs.fuse._decode cimport copied
from pmxcfs.fuse.attributes cimport Attributes, Requester, Statistics, Wanted
from pmxcfs.fuse.handlers cimport Handlers

import os

cdef enum:
    REPLY_SIZE = 256  # bytes of the largest structure in a reply, and more
    BLOCK_SIZE = 4096  # st_blksize
    SECTOR = 512  # bytes that st_blocks counts
    ALIGNMENT = 8  # of entries of a listing
    NO_REPLACE = 1  # renameat2(2): RENAME_NOREPLACE

# What debug messages call a request.
NAMES = {
    FUSE_LOOKUP: "lookup", FUSE_GETATTR: "getattr", FUSE_SETATTR: "setattr",
    FUSE_READLINK: "readlink", FUSE_MKNOD: "mknod", FUSE_MKDIR: "mkdir", FUSE_UNLINK: "unlink",
    FUSE_RMDIR: "rmdir", FUSE_RENAME: "rename", FUSE_RENAME2: "rename", FUSE_OPEN: "open",
    FUSE_READ: "read", FUSE_WRITE: "write", FUSE_STATFS: "statfs", FUSE_RELEASE: "release",
    FUSE_FSYNC: "fsync", FUSE_FLUSH: "flush", FUSE_OPENDIR: "opendir", FUSE_READDIR: "readdir",
    FUSE_READDIRPLUS: "readdir", FUSE_RELEASEDIR: "releasedir", FUSE_FSYNCDIR: "fsyncdir",
    FUSE_CREATE: "create",
}


cdef class Dispatcher:
    """Handles one request after the other, and makes the replies.

    A subclass decodes a request into ``request`` and calls ``handle``; then the reply is in
    ``fixed``, ``more_at`` and ``error``. *lock* is the tree's. *interrupts* are the session's.
    Threads: one at a time.
    """

    def __cinit__(self):
        self.fixed = <char *>malloc(REPLY_SIZE)
        if self.fixed == NULL:
            raise MemoryError

    def __init__(self, Handlers handlers not None, Lock lock not None, interrupts):
        self._handlers = handlers
        self._lock = lock
        self._interrupts = interrupts

    def __dealloc__(self):
        free(self.fixed)

    @property
    def unique(self):
        """The kernel's number of the request that is handled now, or was last."""
        return self.request.unique

    cdef bint handle(self, int error) except -1:
        """Handle ``request``; return whether there is a reply. *error*: of its decoding, or 0."""
        self.is_interrupted = False  # nobody can have interrupted it before it was decoded
        cdef uint32_t opcode = self.request.opcode
        cdef bint has_reply = not is_note(opcode)
        self.error = error
        self.fixed_size = 0
        self._more = None
        self._opened = 0
        self._lock.acquire()
        try:
            if not has_reply:
                if not error:
                    self._take_note()
            elif error:
                pass
            elif self._handlers.is_logging_requests and opcode in NAMES:
                self.error = self._dispatch_logged(NAMES[opcode])
            else:
                self.error = self._dispatch()
        except BaseException as failure:
            # One translator for all sessions; an exception must not end the loop.
            self.fixed_size = 0
            self._more = None
            self.error = self._handlers.errno_of(NAMES.get(opcode, str(opcode)), failure)
        finally:
            self._lock.release()
        self.more_at, self.more_size = NULL, 0
        if self._more is not None:
            self.more_at = PyBytes_AS_STRING(self._more)
            self.more_size = <size_t>PyBytes_GET_SIZE(self._more)
        return has_reply

    cdef int _take_note(self) except -1:
        """Handle a request that has no reply."""
        cdef const fuse_forget_one *nodes = <const fuse_forget_one *>self.request.data
        cdef size_t index
        if self.request.opcode == FUSE_INTERRUPT:
            self._interrupts.interrupt(self.request.interrupted)
        elif self.request.opcode == FUSE_FORGET:
            self._handlers.forget(self.request.node, self.request.count)
        else:
            for index in range(self.request.count):
                self._handlers.forget(nodes[index].nodeid, nodes[index].nlookup)
        return 0

    # Each returns 0 or an errno, and leaves the reply in the fields.

    cdef int _dispatch(self) except -1:
        cdef Request *request = &self.request
        cdef Handlers handlers = self._handlers
        cdef uint32_t opcode = request.opcode
        if opcode == FUSE_LOOKUP:
            return self._put_entry(handlers.lookup(request.node, self._name()))
        if opcode == FUSE_GETATTR:
            return self._put_attributes(handlers.getattr(request.node))
        if opcode == FUSE_OPEN:
            return self._open()
        if opcode == FUSE_READ:
            self._more = handlers.read(request.handle, request.offset, <Py_ssize_t>request.size)
        elif opcode == FUSE_WRITE:
            return self._write()
        elif opcode == FUSE_FLUSH:
            handlers.flush(request.handle)
        elif opcode == FUSE_RELEASE:
            handlers.release(request.handle)
        elif opcode == FUSE_OPENDIR:
            self._opened = handlers.opendir(request.node)
            self._put_handle(0, 0)
        elif opcode == FUSE_READDIR or opcode == FUSE_READDIRPLUS:
            return self._list(opcode == FUSE_READDIRPLUS)
        elif opcode == FUSE_RELEASEDIR:
            handlers.releasedir(request.handle)
        elif opcode == FUSE_STATFS:
            return self._put_statistics(handlers.statfs())
        elif opcode == FUSE_READLINK:
            self._more = handlers.readlink(request.node)
        elif opcode == FUSE_FSYNC:
            handlers.fsync(request.handle)
        elif opcode == FUSE_FSYNCDIR:
            handlers.fsyncdir(request.handle)
        else:
            return self._dispatch_change()
        return 0

    cdef int _dispatch_change(self) except -1:
        cdef Request *request = &self.request
        cdef Handlers handlers = self._handlers
        cdef uint32_t opcode = request.opcode
        cdef Requester requester
        if opcode == FUSE_SYMLINK or opcode == FUSE_LINK:
            return EPERM
        if opcode == FUSE_RENAME2 and request.flags != NO_REPLACE:
            return EINVAL  # ENOSYS would turn all flags off for ever
        if opcode == FUSE_MKNOD and request.mode & S_IFMT != S_IFREG:
            return EPERM
        if opcode not in NAMES:
            return ENOSYS  # the kernel then does not ask for most of them again
        requester = Requester(request.pid, request.uid)
        if opcode == FUSE_CREATE:
            return self._create(requester)
        if opcode == FUSE_SETATTR:
            return self._set_attributes(requester)
        if opcode == FUSE_MKDIR:
            return self._put_entry(
                handlers.mkdir(request.node, self._name(), request.mode, requester))
        if opcode == FUSE_MKNOD:
            return self._put_entry(handlers.mknod(
                request.node, self._name(), request.mode, request.device, requester))
        if opcode == FUSE_UNLINK:
            handlers.unlink(request.node, self._name(), requester)
        elif opcode == FUSE_RMDIR:
            handlers.rmdir(request.node, self._name(), requester)
        else:
            handlers.rename(
                request.node, self._name(), request.new_node, self._new_name(), requester,
                opcode == FUSE_RENAME2)
        return 0

    cdef bytes _name(self):
        return copied(self.request.name, self.request.name_size)

    cdef bytes _new_name(self):
        return copied(self.request.new_name, self.request.new_name_size)

    cdef int _open(self) except -1:
        cdef Request *request = &self.request
        requester = Requester(request.pid, request.uid)
        self._opened = self._handlers.open(request.node, request.flags, requester)
        return self._put_handle(0, open_flags(request.flags))

    cdef int _create(self, Requester requester) except -1:
        cdef Request *request = &self.request
        handle, made = self._handlers.create(
            request.node, self._name(), request.mode, request.flags, requester)
        self._opened = handle
        self._put_entry(made)
        return self._put_handle(sizeof(fuse_entry_out), FOPEN_KEEP_CACHE)

    cdef int _write(self) except -1:
        cdef Request *request = &self.request
        cdef fuse_write_out *reply = <fuse_write_out *>self.fixed
        cdef bint is_mapped = (request.write_flags & FUSE_WRITE_CACHE) != 0
        cdef bint is_append = (request.flags & O_APPEND) != 0 and not is_mapped
        data = copied(request.data, request.data_size)
        used = self._handlers.write(request.handle, request.offset, data, is_append)
        memset(reply, 0, sizeof(fuse_write_out))
        reply.size = <uint32_t>used
        self.fixed_size = sizeof(fuse_write_out)
        return 0

    cdef int _set_attributes(self, Requester requester) except -1:
        handle = self.request.handle if self.request.valid & FATTR_FH else None
        return self._put_attributes(
            self._handlers.setattr(self.request.node, self._wanted(), handle, requester))

    cdef Wanted _wanted(self):
        cdef Request *request = &self.request
        cdef uint32_t valid = request.valid
        return Wanted(
            mode=request.mode if valid & FATTR_MODE else None,
            uid=request.owner if valid & FATTR_UID else None,
            gid=request.group if valid & FATTR_GID else None,
            size=request.size if valid & FATTR_SIZE else None,
            mtime=request.mtime if valid & FATTR_MTIME else None,
        )

    cdef int _list(self, bint with_attributes) except -1:
        """Put as many entries of a listing into the reply as have room."""
        cdef Request *request = &self.request
        cdef list rows = self._handlers.readdir(request.handle, <uint64_t>request.offset)
        cdef size_t room = min(<size_t>request.size, self.room_size), used = 0, size
        cdef size_t before = sizeof(fuse_entry_out) if with_attributes else 0
        cdef size_t start = before + sizeof(fuse_dirent)  # of a name
        cdef Py_ssize_t index
        cdef bytes name
        cdef fuse_dirent *entry
        for index in range(<Py_ssize_t>request.offset, len(rows)):
            name, node, kind, found = rows[index]
            size = (start + <size_t>len(name) + ALIGNMENT - 1) & ~<size_t>(ALIGNMENT - 1)
            if size > room - used:
                break
            memset(self.room + used, 0, size)
            if with_attributes:
                made = self._handlers.listed(request.handle, name, found)
                if made is not None:
                    fill_entry(<fuse_entry_out *>(self.room + used), made)
            entry = <fuse_dirent *>(self.room + used + before)
            entry.ino, entry.off = node, <uint64_t>index + 1
            entry.namelen, entry.type = <uint32_t>len(name), <uint32_t>(<uint32_t>kind >> 12)
            memcpy(self.room + used + start, PyBytes_AS_STRING(name), <size_t>len(name))
            used += size
        self._more = PyBytes_FromStringAndSize(self.room, <Py_ssize_t>used)
        return 0

    # The parts of replies.

    cdef int _put_entry(self, Attributes found) except -1:
        fill_entry(<fuse_entry_out *>self.fixed, found)
        self.fixed_size = sizeof(fuse_entry_out)
        return 0

    cdef int _put_attributes(self, Attributes found) except -1:
        cdef fuse_attr_out *reply = <fuse_attr_out *>self.fixed
        memset(reply, 0, sizeof(fuse_attr_out))
        reply.attr_valid = <uint64_t>found.seconds
        fill_attributes(&reply.attr, found)
        self.fixed_size = sizeof(fuse_attr_out)
        return 0

    cdef int _put_handle(self, size_t offset, uint32_t flags) except -1:
        cdef fuse_open_out *reply = <fuse_open_out *>(self.fixed + offset)
        memset(reply, 0, sizeof(fuse_open_out))
        reply.fh, reply.open_flags = self._opened, flags
        self.fixed_size = offset + sizeof(fuse_open_out)
        return 0

    cdef int _put_statistics(self, Statistics found) except -1:
        cdef fuse_statfs_out *reply = <fuse_statfs_out *>self.fixed
        memset(reply, 0, sizeof(fuse_statfs_out))
        reply.st.bsize = reply.st.frsize = found.block_size
        reply.st.blocks = found.blocks
        reply.st.bfree = reply.st.bavail = found.free_blocks
        reply.st.files, reply.st.ffree = found.entries, found.free_entries
        reply.st.namelen = found.name_size
        self.fixed_size = sizeof(fuse_statfs_out)
        return 0

    # Debug mode.

    cdef int _dispatch_logged(self, str name) except -1:
        """Handle the request, and log it."""
        cdef int error = 0
        requester = Requester(self.request.pid, self.request.uid) if self.request.pid else None
        logged = self._handlers.requests.begin(name, self._arguments(), requester)
        with logged:
            error = self._dispatch()
            if error:
                logged.outcome = os.strerror(error)
            elif self.request.opcode == FUSE_LOOKUP and not (
                    <fuse_entry_out *>self.fixed).nodeid:
                logged.outcome = "ENOENT"
            elif self._opened:
                logged.note_handle(self._opened)
        return error

    cdef tuple _arguments(self):
        """Return what debug messages tell of the request."""
        cdef Request *request = &self.request
        cdef uint32_t opcode = request.opcode
        if opcode in (FUSE_RENAME, FUSE_RENAME2):
            return request.node, self._name(), request.new_node, self._new_name()
        if opcode == FUSE_CREATE:
            return request.node, self._name(), request.mode, request.flags
        if opcode in (FUSE_MKNOD, FUSE_MKDIR):
            return request.node, self._name(), request.mode
        if request.name != NULL:
            return request.node, self._name()
        if opcode == FUSE_OPEN:
            return request.node, request.flags
        if opcode == FUSE_SETATTR:
            return request.node, self._wanted()
        if opcode in (FUSE_READ, FUSE_READDIR, FUSE_READDIRPLUS):
            return request.handle, request.offset, request.size
        if opcode == FUSE_WRITE:
            return request.handle, request.offset, copied(request.data, request.data_size)
        return (request.handle or request.node,)


cdef bint is_note(uint32_t opcode) noexcept nogil:
    """Tell whether the kernel wants no reply."""
    return opcode == FUSE_FORGET or opcode == FUSE_BATCH_FORGET or opcode == FUSE_INTERRUPT


cdef uint32_t open_flags(uint32_t flags) noexcept:
    """Return what the kernel is told of a file that is opened with *flags*."""
    if flags & O_ACCMODE == O_RDONLY and not flags & O_TRUNC:
        return FOPEN_KEEP_CACHE | FOPEN_NOFLUSH  # its close publishes nothing
    return FOPEN_KEEP_CACHE


cdef int fill_entry(fuse_entry_out *entry, Attributes found) except -1:
    memset(entry, 0, sizeof(fuse_entry_out))
    entry.nodeid = found.node
    entry.entry_valid, entry.attr_valid = <uint64_t>found.name_seconds, <uint64_t>found.seconds
    if found.node:
        fill_attributes(&entry.attr, found)
    return 0


cdef int fill_attributes(fuse_attr *attr, Attributes found) except -1:
    attr.ino, attr.size, attr.blksize = found.node, <uint64_t>found.size, <uint32_t>BLOCK_SIZE
    attr.blocks = <uint64_t>((found.size + SECTOR - 1) // SECTOR)
    attr.atime = attr.mtime = attr.ctime = <uint64_t>found.time
    attr.mode, attr.nlink, attr.gid = found.mode, found.nlink, found.gid
    return 0
