# cython: language_level=3, auto_pickle=False, autotestdict=False
"""/dev/fuse: mounting, agreeing on the protocol, taking requests and sending replies.

Threads: one reader at a time takes requests, the one whose ``turn`` it is. Any thread may send
replies, stop and close.
Contract: docs/spec/session.md, "Mounting" and "Looking".
"""

from libc.errno cimport EAGAIN, EINTR, ENOENT, ENODEV, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from pmxcfs.fuse._abi cimport *
from pmxcfs.host.looking cimport look_again, note_answer, note_arrival

import os

from pmxcfs.errors import StartError

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    short POLLIN
    int poll(pollfd *fds, unsigned long count, int timeout)

cdef extern from "<sys/eventfd.h>" nogil:
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK
    int eventfd(unsigned int initial, int flags)

cdef extern from "<sys/mount.h>" nogil:
    enum:
        MS_NOSUID
        MS_NODEV
    int mount(const char *source, const char *target, const char *kind, unsigned long flags,
              const void *data)

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    Py_ssize_t writev(int fd, const iovec *parts, int count)

cdef extern from "<unistd.h>" nogil:
    Py_ssize_t read(int fd, void *buffer, size_t size)
    Py_ssize_t write(int fd, const void *buffer, size_t size)

MIN_MINOR = 31  # of the protocol: Linux 5.4
BACKGROUND = 12 + 64  # background requests at once: read-ahead, and RELEASEs that may wait
CONGESTED = 9 + 64  # background requests above which the kernel does no read-ahead

cdef enum:
    OVER_IO_URING = 1 << 9  # of INIT's flags2; linux/fuse.h of Debian 12 and 13 lacks it

BUFFER_SIZE = MAX_WRITE + PAGE


cdef class Device:
    """An open /dev/fuse, and who may read it."""

    def __cinit__(self):
        self.descriptor = self._wakeup = -1

    def __init__(self):
        self.descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        self._wakeup = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self._wakeup < 0:
            raise OSError(errno, os.strerror(errno))
        self.looking.is_allowed = len(os.sched_getaffinity(0)) > 1

    def __dealloc__(self):
        for descriptor in (self.descriptor, self._wakeup):
            if descriptor >= 0:
                os.close(descriptor)

    def mount(self, bytes target not None):
        """Mount on *target*. Raises OSError."""
        cdef bytes data = (
            b"fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other"
            % self.descriptor)
        if mount(b"/dev/fuse", target, b"fuse", MS_NOSUID | MS_NODEV, <const char *>data) != 0:
            raise OSError(errno, os.strerror(errno))

    def agree(self, double seconds, prepare_queues=None):
        """Answer the kernel's first request; return the minor version that it offers. Blocks.

        If the kernel offers io_uring, *prepare_queues* is called, which returns whether to use it.
        Raises StartError if it does not come in *seconds*, or asks for what is not supported.
        """
        cdef char buffer[8192]
        cdef pollfd wait
        cdef Py_ssize_t size
        cdef int timeout = <int>(seconds * 1000)
        wait.fd, wait.events = self.descriptor, POLLIN
        with nogil:
            poll(&wait, 1, timeout)
            size = read(self.descriptor, buffer, sizeof(buffer))
        cdef const fuse_in_header *header = <const fuse_in_header *>buffer
        cdef const fuse_init_in *wanted = <const fuse_init_in *>(buffer + sizeof(fuse_in_header))
        if size < <Py_ssize_t>(sizeof(fuse_in_header) + 16) or header.opcode != FUSE_INIT:
            raise StartError("the kernel does not begin its FUSE protocol")
        if wanted.major != FUSE_KERNEL_VERSION or wanted.minor < MIN_MINOR:
            raise StartError(
                f"the kernel's FUSE protocol is {wanted.major}.{wanted.minor}, and --fuse native "
                f"needs {FUSE_KERNEL_VERSION}.{MIN_MINOR}: use --fuse llfuse")
        cdef fuse_init_out reply
        memset(&reply, 0, sizeof(reply))
        reply.major = FUSE_KERNEL_VERSION
        reply.minor = min(wanted.minor, <uint32_t>FUSE_KERNEL_MINOR_VERSION)
        reply.max_readahead = wanted.max_readahead
        reply.flags = wanted.flags & <uint32_t>(
            FUSE_BIG_WRITES | FUSE_ATOMIC_O_TRUNC | FUSE_PARALLEL_DIROPS | FUSE_DO_READDIRPLUS
            | FUSE_READDIRPLUS_AUTO | FUSE_CACHE_SYMLINKS | FUSE_MAX_PAGES | FUSE_ABORT_ERROR
            | FUSE_INIT_EXT)
        reply.max_background, reply.congestion_threshold = BACKGROUND, CONGESTED
        reply.max_write = MAX_WRITE
        reply.max_pages = MAX_PAGES
        reply.time_gran = 1
        cdef bint has_flags2 = size >= <Py_ssize_t>(sizeof(fuse_in_header) + sizeof(fuse_init_in)) \
            and wanted.flags & <uint32_t>FUSE_INIT_EXT
        if prepare_queues is not None and has_flags2 and wanted.flags2 & OVER_IO_URING:
            if prepare_queues():
                reply.flags2 = OVER_IO_URING
        if self.send(header.unique, 0, &reply, sizeof(reply), NULL, 0, 0):
            raise StartError("the kernel does not accept the reply to its first request")
        return wanted.minor

    def never_look(self):
        """Let readers sleep at once: no program waits for what still comes."""
        self.looking.is_allowed = False

    cdef Py_ssize_t take(self, char *buffer, uint64_t number) noexcept nogil:
        """Return the size of the next request, put into *buffer*, of BUFFER_SIZE bytes. Blocks.

        0: it is not the turn of reader *number*, or nobody shall read any more.
        """
        cdef Py_ssize_t size
        cdef bint is_asleep = False
        while self.turn == number and not self._is_stopping:
            size = read(self.descriptor, buffer, BUFFER_SIZE)
            if size > 0:
                note_arrival(&self.looking)
                return size
            if size == 0:
                self.end_errno = ENODEV
                return 0
            if errno == EAGAIN:
                if is_asleep or not look_again(&self.looking):
                    is_asleep = True
                    self.rest()
            elif errno != EINTR and errno != ENOENT:
                self.end_errno = errno
                return 0
        return 0

    cdef int rest(self) noexcept nogil:
        """Sleep until there is a request, or ``stop`` is called."""
        cdef pollfd waits[2]
        waits[0].fd, waits[0].events = self.descriptor, POLLIN
        waits[1].fd, waits[1].events = self._wakeup, POLLIN
        return poll(waits, 2, -1)

    cdef int send(
        self, uint64_t unique, int error, const void *fixed, size_t fixed_size,
        const void *more, size_t more_size, uint64_t number
    ) noexcept nogil:
        """Send the reply to the request *unique*: an *error*, or two pieces. Return 0 or an errno.

        *number* is that of the reader. ENOENT means that the kernel waits no more.
        """
        cdef fuse_out_header header
        cdef iovec parts[3]
        cdef int failure = 0
        if error:
            fixed_size = more_size = 0
        header.len = <uint32_t>(sizeof(header) + fixed_size + more_size)
        header.error, header.unique = -error, unique
        parts[0].iov_base, parts[0].iov_len = &header, sizeof(header)
        parts[1].iov_base, parts[1].iov_len = <void *>fixed, fixed_size
        parts[2].iov_base, parts[2].iov_len = <void *>more, more_size
        if writev(self.descriptor, parts, 3) < 0:
            failure = errno
        if self.turn == number:
            note_answer(&self.looking)
        return failure

    def stop(self):
        """Let nobody read any more. For any thread; never blocks."""
        cdef uint64_t one = 1
        self._is_stopping = True
        if write(self._wakeup, &one, sizeof(one)) < 0 and errno != EAGAIN:  # it was told before
            raise OSError(errno, os.strerror(errno))

    def close(self):
        """End the session with the kernel.

        Another thread may still answer or notify: the descriptor stays, and is /dev/null's.
        """
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.dup2(null, self.descriptor, inheritable=False)
        finally:
            os.close(null)
