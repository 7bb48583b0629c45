# cython: language_level=3, auto_pickle=False, autotestdict=False
"""Decoding of the kernel's requests into one structure of numbers and pointers.

The kernel's lengths can be trusted, but each is compared with what is left all the same: a request
that is cut off, or has bytes too many, is an error.
Contract: docs/spec/session.md, "Decoding".
"""

from libc.errno cimport EIO
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcpy, memset

from cpython.bytes cimport PyBytes_FromStringAndSize

from pmxcfs.fuse._abi cimport *

cdef struct Rest:
    const char *at  # in the buffer of the request
    size_t left  # bytes


cdef const void *take(Rest *rest, size_t size) noexcept nogil:
    """Return where the next *size* bytes are; NULL if fewer are left."""
    if size > rest.left:
        return NULL
    cdef const char *here = rest.at
    rest.at += size
    rest.left -= size
    return here


cdef int take_name(Rest *rest, const char **name, size_t *size) noexcept nogil:
    """Take a name that ends with a zero byte. Return 0, or EIO if there is none."""
    cdef const char *end = <const char *>memchr(rest.at, 0, rest.left)
    if end == NULL or end == rest.at:
        return EIO
    name[0] = rest.at
    size[0] = <size_t>(end - rest.at)
    take(rest, size[0] + 1)
    return 0


cdef int decode(const char *buffer, size_t size, Request *to) noexcept nogil:
    """Decode the request in *buffer*, which is aligned to 8 bytes. Return 0, or EIO.

    An opcode that is not known has its header decoded only. If there was an error, *to* has what
    was decoded before it: the opcode, and with it the need to answer, as soon as there is a header.
    """
    cdef Rest rest
    rest.at, rest.left = buffer, size
    memset(to, 0, sizeof(Request))
    cdef const fuse_in_header *header = <const fuse_in_header *>take(&rest, sizeof(fuse_in_header))
    if header == NULL:
        return EIO
    decode_header(header, to)
    return EIO if header.len != size or decode_arguments(&rest, &rest, to) else 0


cdef int decode_parts(
    const char *header, const char *fixed, size_t fixed_room, const char *rest, size_t rest_size,
    size_t rest_room, Request *to
) noexcept nogil:
    """Decode a request as ``decode`` does, whose parts the kernel has put into several places.

    *fixed* is where up to *fixed_room* bytes of the structure are, *rest* where all else is: by the
    kernel *rest_size* bytes, of which *rest_room* are there.
    """
    cdef const fuse_in_header *in_header = <const fuse_in_header *>header
    cdef Rest structure, others
    memset(to, 0, sizeof(Request))
    decode_header(in_header, to)
    if rest_size > rest_room or in_header.len < sizeof(fuse_in_header) + rest_size:
        return EIO
    structure.at, structure.left = fixed, in_header.len - sizeof(fuse_in_header) - rest_size
    others.at, others.left = rest, rest_size
    return EIO if structure.left > fixed_room or decode_arguments(&structure, &others, to) else 0


cdef void decode_header(const fuse_in_header *header, Request *to) noexcept nogil:
    to.opcode, to.unique, to.node = header.opcode, header.unique, header.nodeid
    to.pid, to.uid = header.pid, header.uid


cdef int decode_arguments(Rest *fixed, Rest *rest, Request *to) noexcept nogil:
    """Decode what follows the header: a structure in *fixed*, names and data in *rest*.

    Both can be the same.
    """
    cdef int error
    if to.opcode in (FUSE_LOOKUP, FUSE_UNLINK, FUSE_RMDIR):
        error = take_name(rest, &to.name, &to.name_size)
    elif to.opcode in (FUSE_MKNOD, FUSE_MKDIR, FUSE_CREATE, FUSE_RENAME, FUSE_RENAME2):
        error = decode_name(fixed, rest, to)
    elif to.opcode in (FUSE_READ, FUSE_READDIR, FUSE_READDIRPLUS, FUSE_WRITE):
        error = decode_transfer(fixed, rest, to)
    elif to.opcode in (FUSE_RELEASE, FUSE_RELEASEDIR, FUSE_FLUSH, FUSE_FSYNC, FUSE_FSYNCDIR):
        error = decode_handle(fixed, to)
    elif to.opcode in (FUSE_OPEN, FUSE_OPENDIR, FUSE_GETATTR, FUSE_SETATTR):
        error = decode_attributes(fixed, to)
    elif to.opcode in (FUSE_FORGET, FUSE_BATCH_FORGET):
        error = decode_forget(fixed, rest, to)
    elif to.opcode == FUSE_INTERRUPT:
        error = decode_interrupt(fixed, to)
    elif to.opcode in (FUSE_READLINK, FUSE_STATFS):
        error = 0
    else:
        return 0  # whatever it has
    return EIO if error or fixed.left or rest.left else 0


cdef int decode_name(Rest *fixed, Rest *rest, Request *to) noexcept nogil:
    """Decode a request with one or two names behind a structure."""
    cdef const fuse_mknod_in *mknod
    cdef const fuse_mkdir_in *mkdir
    cdef const fuse_create_in *create
    cdef const fuse_rename_in *rename
    cdef const fuse_rename2_in *rename2
    if to.opcode == FUSE_MKNOD:
        mknod = <const fuse_mknod_in *>take(fixed, sizeof(fuse_mknod_in))
        if mknod == NULL:
            return EIO
        to.mode, to.device = mknod.mode, mknod.rdev
    elif to.opcode == FUSE_MKDIR:
        mkdir = <const fuse_mkdir_in *>take(fixed, sizeof(fuse_mkdir_in))
        if mkdir == NULL:
            return EIO
        to.mode = mkdir.mode
    elif to.opcode == FUSE_CREATE:
        create = <const fuse_create_in *>take(fixed, sizeof(fuse_create_in))
        if create == NULL:
            return EIO
        to.mode, to.flags = create.mode, create.flags
    elif to.opcode == FUSE_RENAME:
        rename = <const fuse_rename_in *>take(fixed, sizeof(fuse_rename_in))
        if rename == NULL:
            return EIO
        to.new_node = rename.newdir
    else:
        rename2 = <const fuse_rename2_in *>take(fixed, sizeof(fuse_rename2_in))
        if rename2 == NULL:
            return EIO
        to.new_node, to.flags = rename2.newdir, rename2.flags
    if take_name(rest, &to.name, &to.name_size):
        return EIO
    if to.opcode == FUSE_RENAME or to.opcode == FUSE_RENAME2:
        return take_name(rest, &to.new_name, &to.new_name_size)
    return 0


cdef int decode_transfer(Rest *fixed, Rest *rest, Request *to) noexcept nogil:
    """Decode a request to read or to write."""
    cdef const fuse_read_in *read
    cdef const fuse_write_in *write
    if to.opcode == FUSE_WRITE:
        write = <const fuse_write_in *>take(fixed, sizeof(fuse_write_in))
        if write == NULL or write.size != rest.left:
            return EIO
        to.handle, to.offset = write.fh, <int64_t>write.offset
        to.flags, to.write_flags = write.flags, write.write_flags
        to.data_size = rest.left
        to.data = <const char *>take(rest, rest.left)
    else:
        read = <const fuse_read_in *>take(fixed, sizeof(fuse_read_in))
        if read == NULL:
            return EIO
        to.handle, to.offset, to.size = read.fh, <int64_t>read.offset, read.size
    return EIO if to.offset < 0 else 0


cdef int decode_handle(Rest *fixed, Request *to) noexcept nogil:
    """Decode a request for an open file or directory."""
    cdef const fuse_release_in *release
    cdef const fuse_flush_in *flush
    cdef const fuse_fsync_in *fsync
    if to.opcode == FUSE_FLUSH:
        flush = <const fuse_flush_in *>take(fixed, sizeof(fuse_flush_in))
        if flush == NULL:
            return EIO
        to.handle = flush.fh
    elif to.opcode == FUSE_FSYNC or to.opcode == FUSE_FSYNCDIR:
        fsync = <const fuse_fsync_in *>take(fixed, sizeof(fuse_fsync_in))
        if fsync == NULL:
            return EIO
        to.handle = fsync.fh
    else:
        release = <const fuse_release_in *>take(fixed, sizeof(fuse_release_in))
        if release == NULL:
            return EIO
        to.handle = release.fh
    return 0


cdef int decode_attributes(Rest *fixed, Request *to) noexcept nogil:
    """Decode a request that opens, or that is about attributes."""
    cdef const fuse_open_in *opening
    cdef const fuse_setattr_in *wanted
    if to.opcode == FUSE_GETATTR:
        return EIO if take(fixed, sizeof(fuse_getattr_in)) == NULL else 0
    if to.opcode == FUSE_SETATTR:
        wanted = <const fuse_setattr_in *>take(fixed, sizeof(fuse_setattr_in))
        if wanted == NULL:
            return EIO
        to.valid, to.handle, to.mode = wanted.valid, wanted.fh, wanted.mode
        to.size, to.mtime = wanted.size, <int64_t>wanted.mtime
        to.owner, to.group = wanted.uid, wanted.gid
        return 0
    opening = <const fuse_open_in *>take(fixed, sizeof(fuse_open_in))
    if opening == NULL:
        return EIO
    to.flags = opening.flags
    return 0


cdef int decode_forget(Rest *fixed, Rest *rest, Request *to) noexcept nogil:
    """Decode a request that takes back references, of one node or of many."""
    cdef const fuse_forget_in *forget
    cdef const fuse_batch_forget_in *batch
    if to.opcode == FUSE_FORGET:
        forget = <const fuse_forget_in *>take(fixed, sizeof(fuse_forget_in))
        if forget == NULL:
            return EIO
        to.count = forget.nlookup
        return 0
    batch = <const fuse_batch_forget_in *>take(fixed, sizeof(fuse_batch_forget_in))
    if batch == NULL or rest.left != batch.count * sizeof(fuse_forget_one):
        return EIO
    to.count = batch.count
    to.data_size = rest.left
    to.data = <const char *>take(rest, rest.left)
    return 0


cdef int decode_interrupt(Rest *fixed, Request *to) noexcept nogil:
    cdef const fuse_interrupt_in *interrupt
    interrupt = <const fuse_interrupt_in *>take(fixed, sizeof(fuse_interrupt_in))
    if interrupt == NULL:
        return EIO
    to.interrupted = interrupt.unique
    return 0


cdef bytes copied(const char *at, size_t size):
    """Return bytes of a request; none if *at* is NULL."""
    return b"" if at == NULL else PyBytes_FromStringAndSize(at, <Py_ssize_t>size)


def decoded(bytes request not None, structure_size=None):
    """Return the fields of *request* that it has; None if it can't be decoded. For tests.

    With *structure_size*, it is decoded as ``decode_parts`` does, with so many bytes after the
    header in a place of their own.
    """
    cdef Request to
    cdef size_t size = <size_t>len(request), header_size = sizeof(fuse_in_header)
    cdef size_t fixed_size, rest_size
    cdef char *header = NULL
    cdef char *fixed = NULL
    cdef char *rest = NULL
    cdef int error
    try:
        if structure_size is None:
            header = duplicate(request, 0, size)
            error = decode(header, size, &to)
        else:
            fixed_size = structure_size
            rest_size = size - header_size - fixed_size
            header = duplicate(request, 0, header_size)
            fixed = duplicate(request, header_size, fixed_size)
            rest = duplicate(request, header_size + fixed_size, rest_size)
            error = decode_parts(header, fixed, fixed_size, rest, rest_size, rest_size, &to)
        return None if error else fields_of(&to)
    finally:
        free(header)
        free(fixed)
        free(rest)


cdef char *duplicate(bytes whole, size_t start, size_t size) except NULL:
    """Return a copy with not one byte more, so that a sanitizer sees what is read beyond it."""
    if start + size > <size_t>len(whole):
        raise ValueError("the parts are longer than the request")
    cdef char *copy = <char *>malloc(size or 1)
    cdef const char *source = whole
    if copy == NULL:
        raise MemoryError
    memcpy(copy, source + start, size)
    return copy


cdef dict fields_of(const Request *to):
    return {
        "opcode": to.opcode, "unique": to.unique, "interrupted": to.interrupted,
        "node": to.node, "pid": to.pid, "uid": to.uid,
        "new_node": to.new_node, "handle": to.handle, "offset": to.offset,
        "size": to.size, "mtime": to.mtime, "count": to.count, "flags": to.flags,
        "write_flags": to.write_flags, "mode": to.mode, "device": to.device,
        "valid": to.valid, "owner": to.owner, "group": to.group,
        "name": copied(to.name, to.name_size),
        "new_name": copied(to.new_name, to.new_name_size),
        "data": copied(to.data, to.data_size),
    }
