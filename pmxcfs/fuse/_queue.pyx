# cython: language_level=3, auto_pickle=False, autotestdict=False
"""FUSE over io_uring: the queue of one CPU, and the threads that answer its requests.

The kernel puts each request into a free *slot* of the queue of the CPU on which its program runs,
and hands it to the thread that has submitted that slot's last reply. So each slot belongs to a
thread: a *worker* has one, and answers what comes in it, however long that waits; nothing can come
to a worker that is busy. The *keeper* has all others. As the kernel takes the slot that became free
last, the keeper gets a request only if all workers are busy. It starts a new worker, which the slot
belongs to from then on. So there are as many workers as requests were ever under way at once.

All threads of a queue run on its CPU.
Contract: docs/spec/session.md, "FUSE over io_uring".
"""

from libc.errno cimport EAGAIN, ECONNABORTED, EIO, EINTR, ENOMEM, ENOSYS, ENOTCONN, errno
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from pmxcfs.fuse._abi cimport *
from pmxcfs.fuse._decode cimport decode_parts
from pmxcfs.fuse._device cimport MAX_WRITE, Device
from pmxcfs.fuse._dispatcher cimport Dispatcher
from pmxcfs.fuse.handlers cimport Handlers

import logging
import os
import threading

from pmxcfs.host.log_limit import LogLimit

_log = logging.getLogger("pmxcfs.fuse")

# What linux/fuse.h of Debian 12 and 13 lacks: struct fuse_uring_req_header and its parts, struct
# fuse_uring_cmd_req, enum fuse_uring_cmd.
cdef extern from *:
    """
    #include <stdint.h>
    struct ring_entry {
        uint64_t flags, commit_id; uint32_t payload_size, padding; uint64_t reserved;
    };
    struct ring_header { char in_out[128], fixed[128]; struct ring_entry entry; };
    struct ring_command { uint64_t flags, commit_id; uint16_t queue; uint8_t padding[6]; };
    enum { URING_REGISTER = 1, URING_COMMIT_AND_FETCH = 2 };
    """
    struct ring_entry:
        uint64_t commit_id
        uint32_t payload_size

    struct ring_header:
        char in_out[128]
        char fixed[128]
        ring_entry entry

    struct ring_command:
        uint64_t flags
        uint64_t commit_id
        uint16_t queue

    enum:
        URING_REGISTER
        URING_COMMIT_AND_FETCH

cdef extern from "<errno.h>" nogil:
    enum:
        ECANCELED

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "<liburing.h>" nogil:
    struct io_uring:
        pass
    struct io_uring_params:
        uint32_t flags
        uint32_t cq_entries
    struct io_uring_sqe:
        uint8_t opcode
        uint8_t flags
        uint32_t cmd_op
        uint64_t addr
        uint32_t len
        uint64_t user_data
        uint8_t cmd[0]
    struct io_uring_cqe:
        uint64_t user_data
        int32_t res
    enum:
        IORING_SETUP_CQSIZE
        IORING_SETUP_DEFER_TASKRUN
        IORING_SETUP_SINGLE_ISSUER
        IORING_SETUP_SQE128
        IORING_OP_URING_CMD
        IOSQE_FIXED_FILE
    int io_uring_queue_init_params(unsigned int entries, io_uring *ring, io_uring_params *params)
    void io_uring_queue_exit(io_uring *ring)
    int io_uring_register_files(io_uring *ring, const int *files, unsigned int count)
    io_uring_sqe *io_uring_get_sqe(io_uring *ring)
    void io_uring_prep_poll_add(io_uring_sqe *sqe, int fd, unsigned int events)
    int io_uring_submit(io_uring *ring)
    int io_uring_submit_and_wait(io_uring *ring, unsigned int count)
    unsigned int io_uring_peek_batch_cqe(io_uring *ring, io_uring_cqe **cqes, unsigned int count)
    void io_uring_cq_advance(io_uring *ring, unsigned int count)

cdef extern from "<sys/mman.h>" nogil:
    enum:
        PROT_READ
        PROT_WRITE
        MAP_PRIVATE
        MAP_ANONYMOUS
        MAP_NORESERVE
    void *MAP_FAILED
    void *mmap(void *address, size_t size, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t size)

cdef extern from "<poll.h>" nogil:
    short POLLIN

cdef extern from "<unistd.h>" nogil:
    int usleep(unsigned int microseconds)

cdef enum:
    HEADER_ROOM = 320  # bytes of a slot's header: a multiple of a cache line
    PAYLOAD_ROOM = MAX_WRITE  # bytes
    SUBMISSIONS = 8  # entries of a ring, which are submitted when they are used up
    RETRY_US = 1000  # until what the kernel had no memory for is asked again
    MOST_ERRNO = 4095  # of the kernel
    WAKEUP = 0  # user_data of what is for no slot; else the slot's number, from 1 on, and its asks


cdef struct Slot:
    ring_header *header
    char *payload
    iovec parts[2]  # both, as the kernel is told
    uint64_t commit_id  # of the request in it
    void *ring  # by which the kernel has it; NULL: it does not have it
    int asked  # the command by which it was given to the kernel last
    uint32_t asks  # how often it was; so a completion is known that comes twice


cdef class Slots:
    """The slots of one CPU's queue, and what its threads have in common.

    *stop_descriptor* becomes readable when the threads shall end.
    """

    cdef readonly int cpu
    cdef readonly Py_ssize_t count
    cdef readonly int stop_descriptor
    cdef public bint is_stopping  # no request is begun any more
    cdef public bint is_over  # the threads shall end
    cdef Device _device
    cdef object _log_limit
    cdef Slot *_slots
    cdef char *_headers
    cdef char *_payloads

    def __init__(self, int cpu, Py_ssize_t count, Device device not None, int stop_descriptor):
        """Raises OSError."""
        self.cpu = cpu
        self.count = count
        self.stop_descriptor = stop_descriptor
        self._device = device
        self._log_limit = LogLimit(_log)
        # They take memory only as far as they are used.
        self._headers = <char *>mapped(<size_t>count * <size_t>HEADER_ROOM)
        self._payloads = <char *>mapped(<size_t>count * <size_t>PAYLOAD_ROOM)
        self._slots = <Slot *>calloc(<size_t>count, sizeof(Slot))
        if self._slots == NULL:
            raise MemoryError
        cdef Py_ssize_t index
        cdef Slot *slot
        for index in range(count):
            slot = &self._slots[index]
            slot.header = <ring_header *>(self._headers + index * HEADER_ROOM)
            slot.payload = self._payloads + index * PAYLOAD_ROOM
            slot.parts[0].iov_base, slot.parts[0].iov_len = slot.header, sizeof(ring_header)
            slot.parts[1].iov_base, slot.parts[1].iov_len = slot.payload, <size_t>PAYLOAD_ROOM

    def __dealloc__(self):
        # No ring is open any more that the kernel could fill a slot for: each holds a reference.
        if self._headers != NULL:
            munmap(self._headers, <size_t>self.count * <size_t>HEADER_ROOM)
        if self._payloads != NULL:
            munmap(self._payloads, <size_t>self.count * <size_t>PAYLOAD_ROOM)
        free(self._slots)

    cdef int log_loss(self, Slot *slot, int failure) except -1:
        """Log that *slot* is lost; NULL: that the kernel has completed what it was not asked."""
        queue = f"the FUSE queue of CPU {self.cpu}"
        if slot == NULL:
            self._log_limit.log(logging.ERROR, "stray", f"{queue}: a completion for no slot of it")
        else:
            self._log_limit.log(
                logging.ERROR, "lost", f"{queue} has lost a slot: {os.strerror(failure)}")
        return 0


cdef class Ring:
    """The ring of one thread, which alone may use it."""

    cdef readonly Slots slots
    cdef io_uring _ring
    cdef bint _is_open

    def __init__(self, Slots slots not None, uint32_t completions=SUBMISSIONS):
        """*completions* can wait in it. Raises OSError."""
        self.slots = slots
        cdef io_uring_params wanted
        memset(&wanted, 0, sizeof(wanted))
        wanted.flags = <uint32_t>(IORING_SETUP_SQE128 | IORING_SETUP_SINGLE_ISSUER
                                  | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CQSIZE)
        wanted.cq_entries = completions
        check(io_uring_queue_init_params(SUBMISSIONS, &self._ring, &wanted))
        self._is_open = True
        cdef int descriptor = slots._device.descriptor
        check(io_uring_register_files(&self._ring, &descriptor, 1))
        self._listen()

    def __dealloc__(self):
        self.close()

    cdef void _listen(self) noexcept nogil:
        """Have a completion without a slot come when the threads shall end."""
        cdef io_uring_sqe *entry = self._entry()
        io_uring_prep_poll_add(entry, self.slots.stop_descriptor, POLLIN)
        entry.user_data = WAKEUP

    def close(self):
        """Close the ring. The kernel hands no request to its thread any more."""
        if self._is_open:
            self._is_open = False
            io_uring_queue_exit(&self._ring)

    cdef io_uring_sqe *_entry(self) noexcept nogil:
        cdef io_uring_sqe *entry = io_uring_get_sqe(&self._ring)
        while entry == NULL:
            io_uring_submit(&self._ring)
            entry = io_uring_get_sqe(&self._ring)
        memset(entry, 0, 2 * sizeof(io_uring_sqe))  # twice the size, by IORING_SETUP_SQE128
        return entry

    cdef void _ask(self, Slot *slot, int what) noexcept nogil:
        """Submit, later, that the kernel takes the reply in *slot*, if any, and fills it again."""
        cdef io_uring_sqe *entry = self._entry()
        cdef ring_command *command = <ring_command *>entry.cmd
        entry.opcode = IORING_OP_URING_CMD
        entry.flags = IOSQE_FIXED_FILE  # file 0: the device
        entry.cmd_op = <uint32_t>what
        if what == URING_REGISTER:
            entry.addr, entry.len = <uintptr_t>slot.parts, 2
        slot.ring, slot.asked = <void *>self, what
        slot.asks += 1
        cdef uint64_t number = <uint64_t>(slot - self.slots._slots) + 1
        entry.user_data = <uint64_t>slot.asks << 32 | number
        command.commit_id, command.queue = slot.commit_id, <uint16_t>self.slots.cpu

    cdef Slot *_returned(self, uint64_t user_data) noexcept nogil:
        """Return the slot that the kernel gives back; NULL if it does not have it by this ring."""
        cdef uint32_t number = <uint32_t>user_data
        cdef Slot *slot
        if number == 0 or number > self.slots.count:
            return NULL
        slot = &self.slots._slots[number - 1]
        if slot.ring != <void *>self or slot.asks != user_data >> 32:
            return NULL
        slot.ring = NULL
        return slot

    cdef Slot *_next(self, int *failure) noexcept nogil:
        """Return the next slot with a request; NULL if the thread shall end. Blocks.

        If *failure* is set, it is the errno by which a slot was lost; with NULL, the kernel has
        completed what it was not asked for.
        """
        cdef io_uring_cqe *taken
        cdef Slot *slot
        cdef uint64_t user_data
        cdef int result
        failure[0] = 0
        while not self.slots.is_over:
            io_uring_submit_and_wait(&self._ring, 1)
            if not io_uring_peek_batch_cqe(&self._ring, &taken, 1):
                continue  # a signal
            user_data, result = taken.user_data, taken.res
            io_uring_cq_advance(&self._ring, 1)
            slot = self._returned(user_data)
            if user_data == WAKEUP:
                self._listen()
            elif slot == NULL:
                failure[0] = EIO
                return NULL
            elif result >= 0:
                slot.commit_id = slot.header.entry.commit_id
                return slot
            elif result == -ENOTCONN or result == -ECONNABORTED:
                return NULL
            elif result == -EAGAIN or result == -EINTR or result == -ENOMEM:
                if result == -ENOMEM:
                    usleep(RETRY_US)
                self._ask(slot, slot.asked)
            else:
                failure[0] = errno_of(result)
                if result == -ECANCELED:
                    self._ask(slot, URING_REGISTER)
                return slot
        return NULL


cdef class Keeper(Ring):
    """The ring of a queue's thread, which keeps the slots that no worker has.

    The kernel hands a request to it if all workers of the CPU are busy.
    """

    def __init__(self, Slots slots not None):
        """Raises OSError."""
        Ring.__init__(self, slots, <uint32_t>(2 * slots.count))

    def register(self):
        """Have the kernel hand its requests over in the slots. Raises OSError.

        If the kernel takes some of them, it has a queue, and goes on with that.
        """
        cdef Py_ssize_t index, lost = 0
        cdef io_uring_cqe *refused
        cdef int failure = 0
        for index in range(self.slots.count):
            self._ask(&self.slots._slots[index], URING_REGISTER)
        check(io_uring_submit(&self._ring))
        # A refusal is complete at once; requests are only handed over in ``run``.
        while io_uring_peek_batch_cqe(&self._ring, &refused, 1):
            if refused.user_data == WAKEUP or refused.res >= 0:
                break
            if self._returned(refused.user_data) != NULL:
                failure, lost = errno_of(refused.res), lost + 1
            io_uring_cq_advance(&self._ring, 1)
        if lost == self.slots.count:
            raise OSError(failure, os.strerror(failure))
        if lost:
            self.slots.log_loss(self.slots._slots, failure)

    def run(self, add_worker, Worker substitute not None):
        """Have a new worker answer each request, until the session ends. Blocks.

        *add_worker* returns a Worker, or None if there can be no more; then *substitute*, which has
        no thread, answers in this one.
        """
        cdef Slot *slot
        cdef int failure
        cdef Worker worker
        while True:
            with nogil:
                slot = self._next(&failure)
            if failure:
                self.slots.log_loss(slot, failure)
            elif slot == NULL:
                return
            elif not self.slots.is_stopping:  # else its program gets an error when the session ends
                worker = add_worker()
                if worker is None:
                    substitute._answer_by(self, slot)
                else:
                    worker._begin(slot)


cdef class Worker(Dispatcher):
    """Answers the requests of one slot, which nobody else has from then on."""

    cdef Slot *_slot
    cdef object _has_slot

    def __init__(self, Handlers handlers not None, lock, interrupts):
        Dispatcher.__init__(self, handlers, lock, interrupts)
        self._has_slot = threading.Event()

    cdef int _begin(self, Slot *slot) except -1:
        """Hand over a slot with a request. For the keeper's thread."""
        self._slot = slot
        self._has_slot.set()
        return 0

    def run(self, Ring ring not None):
        """Answer requests until the session ends. Blocks; also in handlers that wait."""
        cdef Slot *slot
        cdef int failure = 0
        self._has_slot.wait()
        slot = self._slot
        while slot != NULL or failure:
            if failure:
                ring.slots.log_loss(slot, failure)
            elif not ring.slots.is_stopping:  # else its program gets an error when the session ends
                self._answer_by(ring, slot)
            with nogil:
                slot = ring._next(&failure)

    cdef int _answer_by(self, Ring ring, Slot *slot) except -1:
        """Answer the request in *slot*, which is then *ring*'s."""
        self._answer(slot)
        put_reply(slot, self)
        ring._ask(slot, URING_COMMIT_AND_FETCH)
        return 0

    cdef int _answer(self, Slot *slot) except -1:
        cdef int error = decode_parts(
            slot.header.in_out, slot.header.fixed, sizeof(slot.header.fixed), slot.payload,
            slot.header.entry.payload_size, PAYLOAD_ROOM, &self.request)
        self.room, self.room_size = slot.payload, <size_t>PAYLOAD_ROOM
        if not self.handle(error):
            # The kernel wants a reply to all that it puts into a slot.
            self.error = self.error or ENOSYS
        return 0


cdef void put_reply(Slot *slot, Dispatcher dispatcher) noexcept nogil:
    """Put the reply of *dispatcher* into *slot*."""
    cdef size_t size = dispatcher.fixed_size + dispatcher.more_size
    if dispatcher.error or size > PAYLOAD_ROOM:
        put_error(slot, dispatcher.error or EIO, dispatcher.request.unique)
        return
    put_error(slot, 0, dispatcher.request.unique)
    memcpy(slot.payload, dispatcher.fixed, dispatcher.fixed_size)
    if dispatcher.more_size:
        memcpy(slot.payload + dispatcher.fixed_size, dispatcher.more_at, dispatcher.more_size)
    slot.header.entry.payload_size = <uint32_t>size


cdef void put_error(Slot *slot, int error, uint64_t unique) noexcept nogil:
    """Put a reply without content into *slot*; *error*: an errno, or 0."""
    cdef fuse_out_header *header = <fuse_out_header *>slot.header.in_out
    memset(header, 0, sizeof(fuse_out_header))
    header.error, header.unique = -error, unique
    slot.header.entry.payload_size = 0


cdef int errno_of(int32_t result) noexcept nogil:
    """Return the errno of a completion that has failed."""
    return -result if result >= -MOST_ERRNO else EIO


cdef int check(int result) except -1:
    """Raise OSError if a call of liburing has failed."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return 0


cdef void *mapped(size_t size) except NULL:
    """Return zeroed memory, which is not there before it is touched. Raises OSError."""
    cdef void *found = mmap(
        NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if found == MAP_FAILED:
        raise OSError(errno, os.strerror(errno))
    return found
