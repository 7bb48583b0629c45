# cython: language_level=3
"""Notifications to the kernel about what it must not cache any more, by FUSE's own ABI.

llfuse has a queue of its own for these, one thread behind a bounded queue; docs/spec/fuse.md,
"Invalidation", tells why that can't be used. Each call is one write to the session's descriptor,
done without the GIL; it can block for as long as the kernel holds the directory's lock.
"""

from libc.errno cimport ENOENT, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

import os

cdef extern from "<linux/fuse.h>" nogil:
    enum:
        FUSE_NOTIFY_INVAL_INODE
        FUSE_NOTIFY_INVAL_ENTRY
        FUSE_EXPIRE_ONLY
        FUSE_NAME_MAX "1024"  # the kernel's limit; linux/fuse.h does not export it

    struct fuse_out_header:
        uint32_t len
        int error  # the notification's code
        uint64_t unique  # 0: not an answer

    struct fuse_notify_inval_inode_out:
        uint64_t ino
        int64_t off
        int64_t len

    struct fuse_notify_inval_entry_out:
        uint64_t parent
        uint32_t namelen
        uint32_t flags

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len

    Py_ssize_t writev(int fd, const iovec *iov, int iovcnt)


cdef int _send(int fd, int code, void *body, size_t body_size, const char *name,
               size_t name_size) except -1:
    """Write one notification. What the kernel does not know (ENOENT) needs no invalidation."""
    cdef fuse_out_header header
    cdef iovec parts[3]
    cdef Py_ssize_t written
    cdef int failure = 0
    memset(&header, 0, sizeof(header))
    header.error = code
    header.len = <uint32_t>(sizeof(header) + body_size + name_size)
    parts[0].iov_base, parts[0].iov_len = &header, sizeof(header)
    parts[1].iov_base, parts[1].iov_len = body, body_size
    parts[2].iov_base, parts[2].iov_len = <void *>name, name_size
    with nogil:
        written = writev(fd, parts, 3 if name_size else 2)
        if written < 0:
            failure = errno
    if failure and failure != ENOENT:
        raise OSError(failure, os.strerror(failure))
    return 0


def invalidate_inode(int fd, uint64_t node, *, bint pages):
    """Make the kernel forget the attributes of *node*, and its cached content if *pages*.

    Raises OSError if the session is gone.
    """
    cdef fuse_notify_inval_inode_out body
    memset(&body, 0, sizeof(body))
    body.ino = node
    body.off = 0 if pages else -1
    _send(fd, FUSE_NOTIFY_INVAL_INODE, &body, sizeof(body), NULL, 0)


def invalidate_entry(int fd, uint64_t parent, bytes name not None, *, bint expire):
    """Make the kernel forget what it knows of *name* in *parent*, also that it is not there.

    With *expire* it only looks the name up again (Linux 6.2; older ones forget it). Blocks while an
    operation in that directory is going on. Raises OSError if the session is gone.
    """
    cdef fuse_notify_inval_entry_out body
    cdef size_t size = <size_t>len(name)
    if size == 0 or size > FUSE_NAME_MAX:
        return  # such a name can't be in the kernel's cache
    memset(&body, 0, sizeof(body))
    body.parent = parent
    body.namelen = <uint32_t>size
    body.flags = FUSE_EXPIRE_ONLY if expire else 0
    _send(fd, FUSE_NOTIFY_INVAL_ENTRY, &body, sizeof(body), name, size + 1)
