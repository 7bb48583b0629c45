"""Runs queues of FUSE over io_uring on a kernel that is broken; prints what happened as JSON.

Its arguments are a seed and for how many seconds; ``liburing.c`` is preloaded. In each *history* a
queue with its keeper, and its workers in some, answers what this kernel hands over: sound requests
and others, with lengths, numbers and results as no kernel has them. The kernel keeps account of
what each slot must be given back with. The memory of a slot that it has can't be accessed.
"""

import contextlib
import ctypes
import errno
import json
import logging
import mmap
import os
import random
import struct
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pmxcfs.fuse._decode import decoded
from pmxcfs.fuse._device import Device
from pmxcfs.fuse._queue import Keeper, Ring, Slots, Worker
from pmxcfs.fuse.handlers import Handlers
from pmxcfs.fuse.interrupts import Interrupts
from pmxcfs.fuse.node_ids import NodeIds
from pmxcfs.fuse.uring import SLOTS
from pmxcfs.host.callers import Callers
from pmxcfs.host.locking import Lock
from pmxcfs.status.files import links
from pmxcfs.vfs.ownership import Ownership
from tests.fakes.data import kernel_requests as requests
from tests.fakes.doubles.filesystem import World

# struct io_uring_sqe: opcode, flags, fd, cmd_op, addr, len, user_data; what the command is for.
SUBMISSION = struct.Struct("<BBxxiIxxxxQIxxxxQ8xQQH")
COMMAND, POLL = 46, 6  # opcodes
FIXED_FILE = 1
REGISTER, COMMIT = 1, 2
IOVECS = struct.Struct("<QQQQ")
HEADER_SIZE, ENTRY = 288, 256  # of struct fuse_uring_req_header; where its last part begins
ENTRY_FIELDS = struct.Struct("<QQII")  # flags, commit_id, payload_size, padding
OUT = struct.Struct("<IiQ")  # struct fuse_out_header
STRUCTURE = 128  # bytes for a request's structure
ROOM = 128 << 10  # bytes of a payload
MOST_ERRNO = 4095

AGAIN = (errno.EAGAIN, errno.EAGAIN, errno.EINTR, errno.EINTR, errno.ENOMEM)
LOST = (errno.EINVAL, errno.EIO, errno.ENOENT, 512, 4095, 4096, 1 << 30, 1 << 31)
ENDS = (errno.ENOTCONN, errno.ECONNABORTED)
NOTES = (requests.FORGET, requests.BATCH_FORGET, requests.INTERRUPT)
NUMBERS = (0, 1, 2, 3, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
LARGE = (*NUMBERS, 1 << 63, (1 << 64) - 1)
NODES = (1, 1, 1, 1, 2, 3, 4, 77)
NAMES = (b"a", b"b", b"c", b"nodes", b"priv", b".version", b".debug", b"\xff", b"n" * 300)
PROT_NONE = 0
LONGEST_HISTORY = 1000  # completions
FEWEST = 10  # histories, however slow the machine is, at whose end no slot is on its way

FAKE = ctypes.CDLL(None)


class Completion(ctypes.Structure):
    """struct io_uring_cqe."""

    _fields_ = (
        ("user_data", ctypes.c_uint64),
        ("res", ctypes.c_int32),
        ("flags", ctypes.c_uint32),
    )


TAKE = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p)
GIVE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.POINTER(Completion), ctypes.c_int)


@dataclass
class Due:
    """What a slot that was handed over must be given back with."""

    command: int
    commit_id: int | None = None  # None: any
    request: tuple[int, int, bool] | None = None  # its opcode, its number, whether it is sound
    is_certain: bool = True


@dataclass
class Slot:
    """The kernel's account of a slot."""

    header: int  # address
    payload: int  # address
    user_data: int = 0  # by which the kernel got it last
    ring: int | None = None  # that has given it to the kernel; None: the program has it
    command: int = REGISTER  # by which that was
    commit_id: int = 0
    content: bytes = b""  # of the header, while the kernel has it
    due: Due | None = None

    def protect(self, protection: int) -> None:
        """Let the program access the payload as it is told to."""
        address, size = ctypes.c_void_p(self.payload), ctypes.c_size_t(ROOM)
        assert FAKE.mprotect(address, size, protection) == 0


class Kernel:
    """A kernel that hands over what it likes, and expects exactly the right answers."""

    def __init__(self, chance: random.Random, slots: Slots, counts: Counter[str]) -> None:
        self.chance = chance
        self.slots = slots
        self.counts = counts
        self.failures: list[str] = []
        self.is_registering = True
        self._is_refusing = True  # what fails now is lost
        self._is_exact = True  # at its end no slot is on its way
        self._known: dict[int, Slot] = {}
        self._left = chance.randrange(1, LONGEST_HISTORY)
        self._lock = Lock()
        self._ended: set[int] = set()
        self._calls = (TAKE(self._take), GIVE(self._give))  # they must live as long as this
        FAKE.fake_kernel(*self._calls)

    def end(self) -> None:
        """Note that the queue has ended; check that all slots are where they must be."""
        for number, slot in self._known.items():
            slot.protect(mmap.PROT_READ | mmap.PROT_WRITE)
            if self._is_exact and slot.due is not None and slot.due.is_certain:
                self.failures.append(f"slot {number} was not given back: {slot.due}")
        self.counts["exact"] += self._is_exact

    def lost_all(self) -> bool:
        """Tell whether no slot was registered."""
        self.is_registering = self._is_refusing = False
        return all(slot.ring is None and slot.due is None for slot in self._known.values())

    def _give_up(self) -> None:
        self.failures.append(traceback.format_exc())
        self._left = 0
        self._is_exact = False

    # What the program submits

    def _take(self, ring: int, address: int) -> None:
        with self._lock:
            try:
                self._take_one(ring, ctypes.string_at(address, 128))
            except BaseException:  # noqa: BLE001 - C has called
                self._give_up()

    def _take_one(self, ring: int, entry: bytes) -> None:
        opcode, flags, file, command, at, size, user_data, _, commit_id, queue = (
            SUBMISSION.unpack_from(entry)
        )
        if opcode == POLL:
            assert (file, user_data) == (self.slots.stop_descriptor, 0)
            return
        number = user_data & 0xFFFFFFFF
        assert (opcode, flags, file, queue) == (COMMAND, FIXED_FILE, 0, self.slots.cpu)
        if self.is_registering and number not in self._known:
            assert (command, size, commit_id) == (REGISTER, 2, 0)
            header, header_size, payload, room = IOVECS.unpack(ctypes.string_at(at, IOVECS.size))
            assert (header_size, room, payload % mmap.PAGESIZE) == (HEADER_SIZE, ROOM, 0)
            self._known[number] = Slot(header, payload, due=Due(REGISTER))
        slot = self._known[number]
        assert slot.ring is None, "the kernel has it already"
        assert slot.due is not None, "it is lost"
        assert command == slot.due.command
        assert slot.due.commit_id in (None, commit_id)
        slot.content = ctypes.string_at(slot.header, HEADER_SIZE)
        if slot.due.request is not None:
            self._check_reply(slot.content, *slot.due.request)
        slot.ring, slot.command, slot.commit_id, slot.due = ring, command, commit_id, None
        slot.user_data = user_data
        slot.protect(PROT_NONE)

    def _check_reply(self, header: bytes, opcode: int, unique: int, is_sound: bool) -> None:
        _, error, found = OUT.unpack_from(header)
        size = ENTRY_FIELDS.unpack_from(header, ENTRY)[2]
        assert found == unique
        assert size <= ROOM
        assert not (error and size)
        if not is_sound:
            assert error == -errno.EIO
        elif opcode in NOTES:
            assert error == -errno.ENOSYS
        else:
            assert -MOST_ERRNO <= error <= 0
            self.counts["done"] += error == 0

    # What the program gets

    def _give(self, ring: int, completion: Any, is_wanted: int) -> int:
        with self._lock:
            try:
                completion[0].flags = self.chance.choice(NUMBERS)
                return int(self._give_one(ring, completion[0], bool(is_wanted)))
            except BaseException:  # noqa: BLE001 - C has called
                self._give_up()
                self.slots.is_over = True
                return 0

    def _give_one(self, ring: int, completion: Completion, is_wanted: bool) -> bool:
        """Fill *completion*; return whether that was done."""
        if ring in self._ended and is_wanted:
            raise AssertionError("it goes on after its end")
        if ring in self._ended or (not is_wanted and self.chance.random() < 0.7):
            return False
        mine = [number for number, slot in self._known.items() if slot.ring == ring]
        self._left -= 1
        if (self._left < 0 and not self.is_registering) or (is_wanted and not mine):
            return self._end_ring(ring, mine, completion)
        kinds: dict[Callable[[int, list[int], Completion], None], float]
        kinds = {self._wake: 4.0, self._stray: 12.0}
        if mine:
            kinds[self._hand_over], kinds[self._ask_again] = 80.0, 8.0
            kinds[self._cancel], kinds[self._lose] = 1.0, 0.3
        kind = self.chance.choices(list(kinds), list(kinds.values()))[0]
        if is_wanted and self.chance.random() < 0.05:
            return False  # a signal
        if self.chance.random() < 0.001 and not self.is_registering:  # a stop is told later
            self._stop()
        kind(ring, mine, completion)
        self.counts[kind.__name__] += 1
        if completion.user_data == 0 or completion.res >= 0:
            self._is_refusing = False
        return True

    def _end_ring(self, ring: int, mine: list[int], completion: Completion) -> bool:
        self._left = 0
        self._ended.add(ring)
        if mine:
            slot = self._returned(self.chance.choice(mine), completion)
            completion.res = -self.chance.choice(ENDS)
            slot.due = None
        else:
            self._is_exact = False
            self.slots.is_over = True
            self._wake(ring, mine, completion)
        return True

    def _stop(self) -> None:
        """Have no request begun any more."""
        self.slots.is_stopping = True
        for slot in self._known.values():
            if slot.due is not None and slot.due.request is not None:
                slot.due.is_certain = False

    def _returned(self, number: int, completion: Completion) -> Slot:
        """Give a slot to the program."""
        slot = self._known[number]
        slot.protect(mmap.PROT_READ | mmap.PROT_WRITE)
        assert ctypes.string_at(slot.header, HEADER_SIZE) == slot.content, "it was the kernel's"
        slot.ring, completion.user_data = None, slot.user_data
        return slot

    def _wake(self, _ring: int, _mine: list[int], completion: Completion) -> None:
        completion.user_data, completion.res = 0, self.chance.choice((1, 0, -1))

    def _stray(self, ring: int, _mine: list[int], completion: Completion) -> None:
        """Complete what was not asked, or by another ring."""
        mine = {slot.user_data for slot in self._known.values() if slot.ring == ring}
        others = [slot.user_data for slot in self._known.values() if slot.ring != ring]
        count = self.slots.count
        unknown = [1, count, count + 1, count + 2, 1 << 32, (1 << 32) + 1, (1 << 32) + count + 1]
        unknown += [1 << 31, 1 << 63, (1 << 64) - 1, max(mine, default=0) + (1 << 48)]
        wrong = {*unknown, *(slot.header for slot in self._known.values())} - mine
        completion.user_data = self.chance.choice([*others, *others, *sorted(wrong)])
        completion.res = -self.chance.choice((0, 0, *AGAIN, *LOST, *ENDS, errno.ECANCELED))

    def _hand_over(self, _ring: int, mine: list[int], completion: Completion) -> None:
        """Hand over a request, sound or not."""
        slot = self._returned(self.chance.choice(mine), completion)
        completion.res = self.chance.choice((0, 0, 0, 1, 0x7FFFFFFF))
        request, commit_id = put_request(self.chance, slot), self.chance.choice(LARGE)
        opcode, unique, is_sound, payload_size = request
        entry = ENTRY_FIELDS.pack(self.chance.choice(LARGE), commit_id, payload_size, 0)
        ctypes.memmove(slot.header + ENTRY, entry, len(entry))
        slot.due = Due(COMMIT, commit_id, (opcode, unique, is_sound))
        self.counts["sound"] += is_sound
        if self.slots.is_stopping:
            slot.due = None

    def _ask_again(self, _ring: int, mine: list[int], completion: Completion) -> None:
        slot = self._returned(self.chance.choice(mine), completion)
        completion.res = -self.chance.choice(AGAIN)
        slot.due = None if self._is_refusing else Due(slot.command, slot.commit_id)

    def _cancel(self, _ring: int, mine: list[int], completion: Completion) -> None:
        slot = self._returned(self.chance.choice(mine), completion)
        completion.res = -errno.ECANCELED
        slot.due = None if self._is_refusing else Due(REGISTER)

    def _lose(self, _ring: int, mine: list[int], completion: Completion) -> None:
        slot = self._returned(self.chance.choice(mine), completion)
        completion.res = -self.chance.choice(LOST)
        slot.due = None


def put_request(chance: random.Random, slot: Slot) -> tuple[int, int, bool, int]:
    """Put a request into *slot*.

    Return its opcode and number, whether it is sound, and the size of its payload, as is said.
    """
    opcode, structure, payload = made(chance)
    if chance.random() < 0.05:
        opcode = chance.choice((*(sample[0] for sample in requests.SAMPLES), requests.UNKNOWN))
    length, size = requests.HEADER.size + len(structure) + len(payload), len(payload)
    if chance.random() < 0.1:
        length = chance.choice((*NUMBERS, 39, 40, length - 1, length + 1, 40 + STRUCTURE + size))
    if chance.random() < 0.1:
        size = chance.choice((*NUMBERS, size + 1, max(0, size - 1), ROOM, ROOM + 1))
        if chance.random() < 0.5:  # a lie in all places
            length = min(requests.HEADER.size + len(structure) + size, 0xFFFFFFFF)
            if opcode == requests.WRITE:
                structure = structure[:16] + struct.pack("<I", size) + structure[20:]
    unique = chance.choice((*LARGE, chance.getrandbits(64)))
    header = requests.HEADER.pack(length, opcode, unique, chance.choice(NODES), 0, 0, 0, 0)
    ctypes.memmove(slot.header, header, len(header))
    ctypes.memmove(slot.header + STRUCTURE, structure, len(structure))
    ctypes.memmove(slot.payload, payload, len(payload))
    left = length - len(header) - size
    is_sound = size <= ROOM and 0 <= left <= STRUCTURE
    if is_sound:
        fixed = ctypes.string_at(slot.header + STRUCTURE, left)
        is_sound = decoded(header + fixed + ctypes.string_at(slot.payload, size), left) is not None
    return opcode, unique, is_sound, size


def made(chance: random.Random) -> tuple[int, bytes, bytes]:
    """Return the opcode of a sample, its structure, and its names or data, with other numbers."""
    opcode, body, fields = chance.choice(requests.SAMPLES)
    size = 8 if opcode == requests.BATCH_FORGET else requests.structure_size(body, fields)
    structure, payload = bytearray(body[:size]), body[size:]
    if "name" in fields:
        payload = chance.choice(NAMES) + b"\0"
    if "new_name" in fields:
        payload += chance.choice(NAMES) + b"\0"
    if opcode == requests.WRITE:
        payload = bytes(chance.choice((0, 3, 5000, ROOM)))
        struct.pack_into("<QQI", structure, 0, 0, chance.choice((0, 8, 1 << 40)), len(payload))
    if opcode in (requests.READ, requests.READDIR, requests.READDIRPLUS):
        struct.pack_into("<QQI", structure, 0, 0, chance.choice((0, 1, 8)), chance.choice(NUMBERS))
    if "handle" in fields and opcode != requests.SETATTR:
        struct.pack_into("<Q", structure, 0, chance.randrange(1, 6))
    if structure and chance.random() < 0.2:
        structure[chance.randrange(len(structure))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
    return opcode, bytes(structure), payload


def new_handlers() -> Handlers:
    """Return handlers of an empty file system."""
    world = World()
    return Handlers(
        world.files,
        NodeIds(world.tree.root),
        status_files={},
        links=links("node1"),
        ownership=Ownership(0, lenient=True, program_of=str),
        callers=Callers(monotonic_ns=time.monotonic_ns),
        on_debug=lambda on: None,
        start_time=1,
        monotonic_ns=time.monotonic_ns,
    )


class Queue:
    """A queue, with the threads of its workers."""

    def __init__(self, chance: random.Random, counts: Counter[str], stop: int) -> None:
        has_workers = chance.random() < 0.3
        count = chance.choice((1, 2, 8) if has_workers else (1, 2, 3, 8, SLOTS))
        self._slots = Slots(chance.randrange(4), count, Device.__new__(Device), stop)
        self._interrupts = Interrupts()
        self._handlers = new_handlers()
        self._handlers.turn_debug(chance.random() < 0.2)
        self._lock = Lock()
        self._threads: list[threading.Thread] = []
        self._add = self._add_worker if has_workers else lambda: None
        self.kernel = Kernel(chance, self._slots, counts)

    def run(self) -> None:
        """Run it until its kernel ends it."""
        keeper = Keeper(self._slots)
        is_refused = False
        try:
            keeper.register()
        except OSError:
            is_refused = True
        if is_refused != self.kernel.lost_all():
            self.kernel.failures.append("it does not know whether it is registered")
        if not is_refused:
            substitute = self._new_worker()
            with self._interrupts.interrupting(substitute):
                keeper.run(self._add, substitute)
        for thread in self._threads:
            thread.join()
        keeper.close()
        self.kernel.end()

    def _new_worker(self) -> Worker:
        return Worker(self._handlers, self._lock, self._interrupts)

    def _add_worker(self) -> Worker:
        worker = self._new_worker()
        self._threads.append(threading.Thread(target=self._work, args=(worker,)))
        self._threads[-1].start()
        return worker

    def _work(self, worker: Worker) -> None:
        ring = Ring(self._slots)
        with self._interrupts.interrupting(worker):
            worker.run(ring)
        ring.close()


class Surprises(logging.Handler):
    """What is logged and is not about what this kernel has done.

    A handle that it has made up, or a directory that it opens as a file, is taken for a bug, and
    answered with EIO.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        is_lost = "has lost a slot" in text or "a completion for no slot" in text
        is_made_up = record.exc_info is not None and record.exc_info[0] in (KeyError, ValueError)
        if not is_lost and not is_made_up:
            self.lines.append(logging.Formatter().format(record))


def main(seed: int, seconds: float) -> dict[str, Any]:
    """Run histories one after the other; end with the first that has failed."""
    until, counts, surprises = time.monotonic() + seconds, Counter[str](), Surprises()
    logging.getLogger().addHandler(surprises)
    failures: list[str] = []
    stop = os.eventfd(0)
    with contextlib.closing(os.fdopen(stop)):
        while not failures and (time.monotonic() < until or counts["exact"] < FEWEST):
            number = counts["histories"]
            queue = Queue(random.Random(f"{seed} {number}"), counts, stop)
            queue.run()
            counts["histories"] += 1
            failures = [*queue.kernel.failures, *surprises.lines]
    return {"failures": failures, **counts}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), float(sys.argv[2]))))
