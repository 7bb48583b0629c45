# cython: language_level=3
"""Invalidation notifications to the kernel, in the format of FUSE's kernel ABI.

They replace llfuse's notifications, which go through one thread behind a bounded queue. Each call
writes one notification to the session's descriptor and releases the GIL meanwhile. A notification
of an entry can block for as long as the kernel holds the lock of its directory.

Contract: docs/spec/fuse.md, "Invalidation".
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
        FUSE_NOTIFY_INC_EPOCH "8"  # since minor 44; linux/fuse.h of Debian 12 and 13 lacks it

    struct fuse_out_header:
        uint32_t len
        int error  # the notification's code
        uint64_t unique  # 0: not a reply to a request

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


EPOCH_SINCE = 44  # minor version of the protocol: Linux 6.16


cdef int _send(int fd, int code, void *body, size_t body_size, const char *name,
               size_t name_size) except -1:
    """Write one notification. ENOENT is no error: the kernel has nothing to invalidate."""
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
        written = writev(fd, parts, 3)
        if written < 0:
            failure = errno
    if failure and failure != ENOENT:
        raise OSError(failure, os.strerror(failure))
    return 0


def invalidate_inode(int fd, uint64_t node, *, bint pages):
    """Invalidate the kernel's attributes of *node*, and its cached pages if *pages*.

    Raises OSError if the session has ended.
    """
    cdef fuse_notify_inval_inode_out body
    memset(&body, 0, sizeof(body))
    body.ino = node
    body.off = 0 if pages else -1
    _send(fd, FUSE_NOTIFY_INVAL_INODE, &body, sizeof(body), NULL, 0)


def invalidate_entry(int fd, uint64_t parent, bytes name not None, *, bint expire):
    """Invalidate the kernel's entry *name* in the directory *parent*, also a negative entry.

    With *expire*, the kernel keeps the entry but looks the name up before it uses it again (Linux
    6.2; older kernels drop the entry). Blocks while an operation in that directory is going on.
    Raises OSError if the session has ended.
    """
    cdef fuse_notify_inval_entry_out body
    cdef size_t size = <size_t>len(name)
    if size == 0 or size > FUSE_NAME_MAX:
        return  # the kernel can't have cached such a name
    memset(&body, 0, sizeof(body))
    body.parent = parent
    body.namelen = <uint32_t>size
    body.flags = FUSE_EXPIRE_ONLY if expire else 0
    _send(fd, FUSE_NOTIFY_INVAL_ENTRY, &body, sizeof(body), name, size + 1)


def expire_all_entries(int fd):
    """Let the kernel look every name up again before it uses its entry. Never blocks.

    Also those of look-ups that are under way. Needs a kernel with EPOCH_SINCE; raises OSError if it
    has not, or if the session has ended.
    """
    _send(fd, FUSE_NOTIFY_INC_EPOCH, NULL, 0, NULL, 0)
