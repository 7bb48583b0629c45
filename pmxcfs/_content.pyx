# cython: language_level=3, auto_pickle=False, autotestdict=False
"""The bytes of one file: what a write makes of them, and what of it is still unpublished.

Offsets and sizes come from outside as Python integers; ``as_size`` and ``end_of`` are the only way
for them into C arithmetic. Nothing here knows entries, the tree or a clock. Threads: all of it is
atomic under the GIL.
"""

from collections import namedtuple

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

cdef int64_t MAX_SIZE = 0xFFFFFFFF  # a size is 32 bits on the wire and in checksums

Unpublished = namedtuple("Unpublished", ["offset", "data", "truncate"], module=__name__)
Unpublished.__doc__ = "What a file's next WRITE message has to carry."


cdef Py_ssize_t as_size(object value) except -1:
    """Check that an offset, length or size from a caller fits what a file can have."""
    if not 0 <= value <= MAX_SIZE:
        raise ValueError(f"no offset or size in a file: {value}")
    return value


cdef Py_ssize_t end_of(Py_ssize_t offset, bytes data) except -1:
    """Return where *data* at *offset* (already checked) ends."""
    if len(data) > MAX_SIZE - offset:
        raise ValueError(f"{len(data)} bytes at offset {offset} do not fit into a file")
    return offset + len(data)


cdef bytes cut(bytearray buffer, Py_ssize_t start, Py_ssize_t stop):
    """Copy buffer[start:stop] once, clipped to what there is."""
    stop = min(stop, len(buffer))
    if start >= stop:
        return b""
    return PyBytes_FromStringAndSize(PyByteArray_AS_STRING(buffer) + start, stop - start)


cdef bytes splice(bytes base, Py_ssize_t offset, bytes data, bint truncate):
    """Return *base* with *data* at *offset*, zeros in a gap, and nothing behind if *truncate*.

    *data* itself is returned where it covers everything: whole files are never copied.
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
    """A file's content as local writers left it, and which of it other nodes don't have.

    The *dirty* bytes are in no message yet: the range [low, high), or everything if *whole*. A
    *flight* is a range (low, high, whole) that a WRITE under way carries. All the other bytes are
    the published ones and follow them (``rebase``).
    """

    def __cinit__(self):
        self.buffer = bytearray()
        self.flights = []

    cdef bint is_dirty(self) noexcept:
        return self.whole or self.high > self.low

    cdef bint is_needed(self) noexcept:
        """Tell whether it differs from what is published, or will."""
        return self.is_dirty() or len(self.flights) > 0

    cdef int extend_to(self, Py_ssize_t size) except -1:
        """Zero-fill up to *size*."""
        if size > len(self.buffer):
            self.buffer.extend(bytes(size - len(self.buffer)))
        return 0

    cdef int cover(self, Py_ssize_t low, Py_ssize_t high) except -1:
        """Add [low, high) to the dirty range."""
        if self.high > self.low:
            low, high = min(low, self.low), max(high, self.high)
        self.low, self.high = low, high
        return 0

    cdef int write(self, Py_ssize_t offset, bytes data) except -1:
        cdef Py_ssize_t before = len(self.buffer)
        self.extend_to(offset)
        self.buffer[offset:offset + len(data)] = data
        self.cover(min(offset, before), offset + len(data))
        return 0

    cdef int truncate(self, Py_ssize_t size) except -1:
        cdef Py_ssize_t before = len(self.buffer)
        if size > before:
            self.extend_to(size)
            self.cover(before, size)
        else:
            del self.buffer[size:]
            self.whole = True
        return 0

    cdef object take(self):
        """Turn the dirty bytes into a flight and return what its WRITE has to carry."""
        cdef Py_ssize_t low = 0 if self.whole else self.low
        cdef Py_ssize_t high = len(self.buffer) if self.whole else self.high
        # As Unpublished(...) does, without a Python function in between.
        taken = tuple.__new__(Unpublished, (low, cut(self.buffer, low, high), self.whole))
        self.flights.append((low, high, self.whole))
        self.whole = False
        self.low = self.high = 0
        self.since_ns = 0
        return taken

    cdef int put_back(self) except -1:
        """Make the bytes of the last flight dirty again, those that were not cut off meanwhile."""
        low, high, whole = self.flights.pop()
        self.whole = self.whole or whole
        high = min(high, len(self.buffer))
        if high > low:
            self.cover(low, high)
        return 0

    cdef int rebase(self, bytes content, bint sparse) except -1:
        """Take over *content* as published, under what is dirty or in flight.

        *sparse* content has a size but no bytes, and a WRITE of a range would lose that size.
        """
        cdef bytearray written
        if not self.is_replacing():
            written = self.buffer
            self.buffer = bytearray(content)
            for low, high, _ in self.flights:
                self.overlay(written, low, high)
            self.overlay(written, self.low, self.high)
        if sparse and self.is_dirty():
            self.whole = True
        return 0

    cdef bint is_replacing(self) except? True:
        """Tell whether a publication under way, or the next one, replaces everything."""
        return self.whole or any([whole for _, _, whole in self.flights])

    cdef int overlay(self, bytearray written, Py_ssize_t low, Py_ssize_t high) except -1:
        """Put written[low:high] at its place."""
        if high > low:
            self.extend_to(low)
            self.buffer[low:high] = cut(written, low, high)
        return 0
