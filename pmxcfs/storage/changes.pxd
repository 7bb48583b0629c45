# cython: language_level=3
"""What other compiled modules call of ``changes``."""

from libc.stdint cimport uint32_t, uint64_t


cpdef bytes pack_mutation(
    uint64_t version,
    uint32_t writer,
    uint32_t mtime,
    uint64_t time_ns,
    uint64_t inode,
    caller,
    mutation,
)
