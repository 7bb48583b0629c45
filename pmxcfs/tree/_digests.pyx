# cython: language_level=3, auto_pickle=False, autotestdict=False
"""The inner loops of ``index``: the order of an index's entries, and what differs in another one.

At 64 members with 100,000 entries a round compares six million digests. Nothing is copied, and no
object is made for an entry. The size of an index is checked by the caller, its order by ``rises``.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t
from libc.string cimport memcmp

cdef enum:
    HEADER_SIZE = 32  # of an index, in bytes
    ENTRY_SIZE = 40  # inode u64, digest


cdef inline uint64_t inode_at(const unsigned char *entry) noexcept:
    """Return the inode of an entry, a little-endian number."""
    cdef uint64_t inode = 0
    cdef int place
    for place in range(8):
        inode |= <uint64_t>entry[place] << (8 * place)
    return inode


cdef Py_ssize_t count_of(bytes index) except -1:
    """Return how many entries the size of an index is for."""
    return max(PyBytes_GET_SIZE(index) - HEADER_SIZE, 0) // ENTRY_SIZE


cdef const unsigned char *entries_of(bytes index) except NULL:
    """Return where the first entry is; *index* owns it, and it is there if ``count_of`` says so."""
    return <const unsigned char *>PyBytes_AS_STRING(index) + HEADER_SIZE


def rises(bytes index not None):
    """Tell whether each inode in an index is higher than the one before."""
    cdef const unsigned char *entry = entries_of(index)
    cdef const unsigned char *last = entry + ENTRY_SIZE * (count_of(index) - 1)
    while entry < last:
        if inode_at(entry + ENTRY_SIZE) <= inode_at(entry):
            return False
        entry += ENTRY_SIZE
    return True


def mark_differing(bytes index not None, bytes other not None, bytearray marks not None):
    """Set the byte of *marks* for each entry of *index* that *other* lacks or has differently.

    The inodes of both must rise. Raises ValueError unless *marks* has a byte for each entry.
    """
    cdef Py_ssize_t count = count_of(index), left = count_of(other), number
    if PyByteArray_GET_SIZE(marks) != count:
        raise ValueError(f"{PyByteArray_GET_SIZE(marks)} marks for {count} entries")
    cdef char *mark = PyByteArray_AS_STRING(marks)
    cdef const unsigned char *entry = entries_of(index)
    cdef const unsigned char *theirs = entries_of(other)
    for number in range(count):
        while left > 0 and inode_at(theirs) < inode_at(entry):
            theirs += ENTRY_SIZE
            left -= 1
        if left <= 0 or memcmp(entry, theirs, ENTRY_SIZE) != 0:
            mark[number] = 1
        entry += ENTRY_SIZE
