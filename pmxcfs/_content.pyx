# cython: language_level=3, auto_pickle=False, autotestdict=False
"""The content of one file: applying a write, and tracking dirty bytes and writebacks.

Offsets and sizes from callers are Python integers; only ``as_size`` and ``end_of`` check and
convert them for C arithmetic. No knowledge of entries, the tree or a clock.
Threads: every function is atomic under the GIL.
Contract: docs/spec/cluster.md, "Messages" (WRITE).
"""

from collections import namedtuple

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

cdef extern from "Python.h":
    int PyByteArray_Resize(object array, Py_ssize_t size) except -1  # Cython 0.29 ignores its error

cdef int64_t MAX_SIZE = 0xFFFFFFFF  # a size is 32 bits on the wire and in checksums

Unpublished = namedtuple("Unpublished", ["offset", "data", "truncate"], module=__name__)
Unpublished.__doc__ = "The fields of the WRITE message that publishes the dirty bytes of a file."


cdef Py_ssize_t as_size(object value) except -1:
    """Convert an offset, length or size from a caller. Raises ValueError outside of 32 bits."""
    if not 0 <= value <= MAX_SIZE:
        raise ValueError(f"invalid offset or size in a file: {value}")
    return value


cdef Py_ssize_t end_of(Py_ssize_t offset, bytes data) except -1:
    """Return the offset of the end of *data* written at *offset* (already checked)."""
    if len(data) > MAX_SIZE - offset:
        raise ValueError(f"{len(data)} bytes at offset {offset} do not fit into a file")
    return offset + len(data)


cdef bytes copy_range(bytearray buffer, Py_ssize_t start, Py_ssize_t stop):
    """Return buffer[start:stop], clipped to the buffer, with a single copy."""
    stop = min(stop, len(buffer))
    if start >= stop:
        return b""
    return PyBytes_FromStringAndSize(PyByteArray_AS_STRING(buffer) + start, stop - start)


cdef bytes splice(bytes base, Py_ssize_t offset, bytes data, bint truncate):
    """Return *base* with *data* written at *offset*, and cut off behind *data* if *truncate*.

    A gap is filled with zeros. If *data* covers everything, *data* itself is returned, not a copy.
    """
    cdef Py_ssize_t end = offset + len(data)
    cdef Py_ssize_t size = end if truncate else max(end, len(base))
    if offset == 0 and size == end:
        return data
    cdef bytes result = PyBytes_FromStringAndSize(NULL, size)
    cdef char* out = PyBytes_AS_STRING(result)
    cdef const char* old = PyBytes_AS_STRING(base)
    cdef Py_ssize_t kept = min(offset, len(base))
    memcpy(out, old, <size_t>kept)
    memset(out + kept, 0, <size_t>(offset - kept))
    memcpy(out + offset, PyBytes_AS_STRING(data), <size_t>len(data))
    if size > end:
        memcpy(out + end, old + end, <size_t>(size - end))
    return result


@cython.final
cdef class Draft:
    """A file's content as readers on this node see it, with dirty bytes and writebacks.

    Dirty bytes are in no WRITE message yet: the range [low, high), or everything if *whole*. A
    writeback is a range (low, high, whole) in a WRITE message that is not yet applied. All other
    bytes equal the published content; ``rebase`` updates them.
    """

    def __cinit__(self):
        self.buffer = bytearray()
        self.in_flight = []

    cdef bint is_dirty(self) noexcept:
        return self.whole or self.high > self.low

    cdef bint is_needed(self) noexcept:
        """Tell whether the file is dirty or in writeback."""
        return self.is_dirty() or len(self.in_flight) > 0

    cdef int extend_to(self, Py_ssize_t size) except -1:
        """Zero-fill up to *size*."""
        if size > len(self.buffer):
            self.buffer.extend(bytes(size - len(self.buffer)))
        return 0

    cdef int mark_dirty(self, Py_ssize_t low, Py_ssize_t high) except -1:
        """Add [low, high) to the dirty range."""
        if self.high > self.low:
            low, high = min(low, self.low), max(high, self.high)
        self.low, self.high = low, high
        return 0

    cdef int write(self, Py_ssize_t offset, bytes data) except -1:
        cdef Py_ssize_t before = len(self.buffer), end = offset + len(data)
        self.before = None
        self.extend_to(offset)
        if end > len(self.buffer):
            PyByteArray_Resize(self.buffer, end)
        memcpy(PyByteArray_AS_STRING(self.buffer) + offset, PyBytes_AS_STRING(data),
               <size_t>len(data))
        self.mark_dirty(min(offset, before), end)
        return 0

    cdef bytes read(self, Py_ssize_t start, Py_ssize_t stop):
        """Return a range of the content for the kernel.

        Between an open that has cut the file off and its reply, the kernel still has the old size:
        it would take a short answer for zeros. Once it knows, it does not ask for these bytes.
        """
        return copy_range(self.buffer if self.before is None else self.before, start, stop)

    cdef int truncate(self, Py_ssize_t size, bint opening) except -1:
        cdef Py_ssize_t before = len(self.buffer)
        if not opening:
            self.before = None
        elif self.before is None:
            self.before = self.buffer[:]
        if size > before:
            self.extend_to(size)
            self.mark_dirty(before, size)
        else:
            PyByteArray_Resize(self.buffer, size)
            self.whole = True
        return 0

    cdef object take(self):
        """Begin a writeback of the dirty bytes and return the fields of its WRITE message."""
        self.before = None
        cdef Py_ssize_t low = 0 if self.whole else self.low
        cdef Py_ssize_t high = len(self.buffer) if self.whole else self.high
        # Unpublished(...), without the cost of its Python-level __new__.
        taken = tuple.__new__(Unpublished, (low, copy_range(self.buffer, low, high), self.whole))
        self.in_flight.append((low, high, self.whole))
        self.whole = False
        self.low = self.high = 0
        self.since_ns = 0
        return taken

    cdef int redirty(self, bint sparse) except -1:
        """End the last writeback: its bytes are dirty again, as far as the file still has them.

        Over *sparse* published content the whole file becomes dirty, as in ``rebase``.
        """
        low, high, whole = self.in_flight.pop()
        self.whole = self.whole or whole or sparse
        high = min(high, len(self.buffer))
        if high > low:
            self.mark_dirty(low, high)
        return 0

    cdef int rebase(self, bytes content, bint sparse) except -1:
        """Replace the published content by *content*, below the dirty and in-flight ranges.

        A *sparse* content has a size but no bytes; a WRITE of a range would lose that size, so the
        whole file becomes dirty.
        """
        cdef bytearray written
        self.before = None
        if not self.is_replacing():
            written = self.buffer
            self.buffer = bytearray(content)
            for low, high, _ in self.in_flight:
                self.overlay(written, low, high)
            self.overlay(written, self.low, self.high)
        if sparse and self.is_dirty():
            self.whole = True
        return 0

    cdef bint is_replacing(self) except? True:
        """Tell whether a writeback, or the next one, replaces the whole file."""
        if self.whole:
            return True
        for _, _, whole in self.in_flight:
            if whole:
                return True
        return False

    cdef int overlay(self, bytearray written, Py_ssize_t low, Py_ssize_t high) except -1:
        """Copy written[low:high] to the same range of the buffer."""
        if high > low:
            self.extend_to(low)
            self.buffer[low:high] = copy_range(written, low, high)
        return 0
