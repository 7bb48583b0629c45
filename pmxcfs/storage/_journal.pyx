# cython: language_level=3, auto_pickle=False, autotestdict=False
"""The bytes of the journal that every change waits for: frames, their checksum, reserved space.

A record is framed as length u32, CRC-32C u32, sequence number u64, body; all little endian. The
length counts what is behind the CRC, and the CRC is of the same bytes. What is read is untrusted:
a length is compared with what is left before it is used.

The CRC uses the processor's instruction where there is one, else a table; ``bench_journal`` shows
the difference.
Contract: docs/spec/storage.md, "Journal".
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EINTR, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

import os

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>

    static uint32_t crc_tables[8][256];

    static uint32_t load_u32(const unsigned char *p) {
        return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
    }

    static void crc_make_tables(void) {
        for (uint32_t byte = 0; byte < 256; byte++) {
            uint32_t crc = byte;
            for (int bit = 0; bit < 8; bit++)
                crc = (crc >> 1) ^ (0x82F63B78u & (0u - (crc & 1u)));
            crc_tables[0][byte] = crc;
        }
        for (uint32_t byte = 0; byte < 256; byte++)
            for (int n = 1; n < 8; n++)
                crc_tables[n][byte] = (crc_tables[n - 1][byte] >> 8)
                    ^ crc_tables[0][crc_tables[n - 1][byte] & 0xFF];
    }

    static uint32_t crc_by_table(uint32_t crc, const unsigned char *p, size_t size) {
        for (; size >= 8; p += 8, size -= 8) {
            uint32_t low = crc ^ load_u32(p), high = load_u32(p + 4);
            crc = crc_tables[7][low & 0xFF] ^ crc_tables[6][(low >> 8) & 0xFF]
                ^ crc_tables[5][(low >> 16) & 0xFF] ^ crc_tables[4][low >> 24]
                ^ crc_tables[3][high & 0xFF] ^ crc_tables[2][(high >> 8) & 0xFF]
                ^ crc_tables[1][(high >> 16) & 0xFF] ^ crc_tables[0][high >> 24];
        }
        for (; size; p++, size--)
            crc = (crc >> 8) ^ crc_tables[0][(crc ^ *p) & 0xFF];
        return crc;
    }

    #if defined(__x86_64__)
    #include <string.h>
    static int crc_has_instruction(void) { return __builtin_cpu_supports("sse4.2") != 0; }
    __attribute__((target("sse4.2")))
    static uint32_t crc_by_instruction(uint32_t start, const unsigned char *p, size_t size) {
        uint64_t crc = start, eight;
        for (; size >= 8; p += 8, size -= 8) {
            memcpy(&eight, p, 8);
            crc = __builtin_ia32_crc32di(crc, eight);
        }
        uint32_t rest = (uint32_t)crc;
        for (; size; p++, size--)
            rest = __builtin_ia32_crc32qi(rest, *p);
        return rest;
    }
    #elif defined(__aarch64__) && defined(__AARCH64EL__)
    #include <string.h>
    #include <sys/auxv.h>
    #include <asm/hwcap.h>
    static int crc_has_instruction(void) { return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0; }
    static uint32_t crc_by_instruction(uint32_t crc, const unsigned char *p, size_t size) {
        uint64_t eight;
        for (; size >= 8; p += 8, size -= 8) {
            memcpy(&eight, p, 8);
            __asm__(".arch_extension crc\\n\\tcrc32cx %w0, %w0, %x1" : "+r"(crc) : "r"(eight));
        }
        for (; size; p++, size--)
            __asm__(".arch_extension crc\\n\\tcrc32cb %w0, %w0, %w1"
                    : "+r"(crc) : "r"((uint32_t)*p));
        return crc;
    }
    #else
    static int crc_has_instruction(void) { return 0; }
    #define crc_by_instruction crc_by_table
    #endif
    """
    void crc_make_tables() noexcept nogil
    uint32_t crc_by_table(uint32_t crc, const unsigned char *data, size_t size) noexcept nogil
    int crc_has_instruction() noexcept nogil
    uint32_t crc_by_instruction(uint32_t crc, const unsigned char *data, size_t size) noexcept nogil

cdef extern from "<fcntl.h>" nogil:
    int fallocate(int fd, int mode, long offset, long length)
    enum:
        FALLOC_FL_KEEP_SIZE

cdef extern from "<linux/magic.h>" nogil:
    enum:
        TMPFS_MAGIC
        RAMFS_MAGIC

cdef extern from "<sys/vfs.h>" nogil:
    struct statfs_t "statfs":
        long f_type
    int fstatfs(int fd, statfs_t *found)

cdef enum:  # sizes in bytes
    FRAME = 16  # length, CRC and sequence number
    PREFIX = 8  # length and CRC
    SMALLEST = 9  # what a length counts at least: a sequence number and a kind
    LARGEST = 8388608  # what a length counts at most
    EFFORT = 64  # times the size of its input that a search computes checksums over at most

MAX_BODY = LARGEST - PREFIX  # bytes, the kind included
FRAME_SIZE = FRAME  # bytes that ``frame`` adds to a body

cdef bint HAS_INSTRUCTION = crc_has_instruction() != 0
crc_make_tables()


cdef uint32_t checksum(
    uint32_t crc, const unsigned char *data, size_t size, bint by_table
) noexcept nogil:
    crc = ~crc
    if HAS_INSTRUCTION and not by_table:
        return ~crc_by_instruction(crc, data, size)
    return ~crc_by_table(crc, data, size)


cdef uint32_t checksum_of(data, uint32_t crc, bint by_table) except? 1:
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        return checksum(crc, <const unsigned char *>view.buf, <size_t>view.len, by_table)
    finally:
        PyBuffer_Release(&view)


def crc32c(data, crc=0):
    """Return the CRC-32C of *data*; *crc* is that of the bytes before it."""
    return checksum_of(data, crc, False)


def crc32c_by_table(data, crc=0):
    """Return what ``crc32c`` returns, without the processor's instruction."""
    return checksum_of(data, crc, True)


cdef int put(unsigned char *at, uint64_t value, int width) noexcept:
    """Store *value* as *width* little-endian bytes."""
    cdef int index
    for index in range(width):
        at[index] = <unsigned char>((value >> (8 * index)) & 0xFF)
    return 0


cdef uint64_t get(const unsigned char *at, int width) noexcept:
    """Read *width* little-endian bytes."""
    cdef uint64_t value = 0
    cdef int index
    for index in range(width):
        value |= <uint64_t>at[index] << (8 * index)
    return value


cpdef bytes frame(list bodies, first_sequence):
    """Return the records of *bodies*, numbered from *first_sequence* on.

    A body is the byte of its kind and what follows. Raises ValueError if one is empty or has more
    than MAX_BODY bytes.
    """
    cdef Py_ssize_t total = 0, size
    cdef bytes body
    for body in bodies:
        if body is None:
            raise TypeError("a body is bytes")
        size = len(body)
        if not 0 < size <= LARGEST - PREFIX:
            raise ValueError(f"a record has 1 to {MAX_BODY} bytes, not {size}")
        total += FRAME + size
    cdef bytes result = PyBytes_FromStringAndSize(NULL, total)
    cdef unsigned char *at = <unsigned char *>PyBytes_AS_STRING(result)
    cdef uint64_t sequence = first_sequence
    for body in bodies:
        size = len(body)
        put(at, <uint64_t>(PREFIX + size), 4)
        put(at + PREFIX, sequence, 8)
        memcpy(at + FRAME, PyBytes_AS_STRING(body), <size_t>size)
        put(at + 4, checksum(0, at + PREFIX, <size_t>(PREFIX + size), False), 4)
        at += FRAME + size
        sequence += 1
    return result


cdef uint64_t length_at(const unsigned char *at, Py_ssize_t left) noexcept:
    """Return what the length at *at* counts; 0 if no record with *left* bytes can begin there."""
    if left < FRAME + 1:
        return 0
    cdef uint64_t length = get(at, 4)
    if length < SMALLEST or length > LARGEST or length > <uint64_t>(left - PREFIX):
        return 0
    return length


cdef bint is_sound(const unsigned char *at, uint64_t length) noexcept:
    return checksum(0, at + PREFIX, <size_t>length, False) == <uint32_t>get(at + 4, 4)


def split(bytes data not None, Py_ssize_t start, uint64_t sequence):
    """Return the bounds of the bodies of the records that begin at *start*, and where they end.

    The first has number *sequence*, the others follow without a gap. What does not is the end.
    """
    cdef const unsigned char *base = <const unsigned char *>PyBytes_AS_STRING(data)
    cdef Py_ssize_t size = len(data), at = start
    cdef uint64_t length
    cdef list bounds = []
    if not 0 <= start <= size:
        raise ValueError(f"{start} is outside of {size} bytes")
    while True:
        length = length_at(base + at, size - at)
        if not length or get(base + at + PREFIX, 8) != sequence or not is_sound(base + at, length):
            return bounds, at
        bounds.append((at + FRAME, at + PREFIX + <Py_ssize_t>length))
        at += PREFIX + <Py_ssize_t>length
        sequence += 1


def search(bytes data not None, Py_ssize_t start, uint64_t lowest, uint64_t highest):
    """Return the offset and the number of the first sound record at or behind *start*, or None.

    Only records with numbers from *lowest* to *highest* count. The search gives up after it has
    computed checksums over 64 times as many bytes as *data* has: only made-up bytes need more.
    """
    cdef const unsigned char *base = <const unsigned char *>PyBytes_AS_STRING(data)
    cdef Py_ssize_t size = len(data), at = start
    cdef uint64_t length, sequence, effort = 0, limit = <uint64_t>size * EFFORT
    if not 0 <= start <= size:
        raise ValueError(f"{start} is outside of {size} bytes")
    while size - at > FRAME and effort <= limit:
        length = length_at(base + at, size - at)
        sequence = get(base + at + PREFIX, 8)
        if length and lowest <= sequence <= highest:
            effort += length
            if is_sound(base + at, length):
                return at, sequence
        at += 1
    return None


def is_zero(bytes data not None, Py_ssize_t start):
    """Tell whether all bytes of *data* from *start* on are 0."""
    cdef const unsigned char *base = <const unsigned char *>PyBytes_AS_STRING(data)
    cdef Py_ssize_t at
    for at in range(max(start, 0), len(data)):
        if base[at]:
            return False
    return True


def reserve(int fd, long offset, long length):
    """Reserve space for *length* bytes from *offset* on; the file's size stays. Blocks.

    Raises OSError; with EOPNOTSUPP the file system can't reserve space. Unlike
    ``os.posix_fallocate`` this never writes zeros instead.
    """
    cdef int status, code = EINTR
    while code == EINTR:
        with nogil:
            status = fallocate(fd, FALLOC_FL_KEEP_SIZE, offset, length)
            code = errno if status else 0
    if code:
        raise OSError(code, os.strerror(code))


def is_in_memory(int fd):
    """Tell whether a file is on a file system that a power cut empties. Raises OSError."""
    cdef statfs_t found
    cdef int status
    with nogil:
        status = fstatfs(fd, &found)
    if status:
        raise OSError(errno, os.strerror(errno))
    return found.f_type == TMPFS_MAGIC or found.f_type == RAMFS_MAGIC
