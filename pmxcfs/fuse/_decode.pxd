# cython: language_level=3
from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef struct Request:
    # A decoded request; what its kind does not have is 0. The pointers lead into its buffer.
    uint32_t opcode
    uint32_t pid
    uint32_t uid
    uint64_t unique
    uint64_t interrupted  # the number of the request that an INTERRUPT is for
    uint64_t node
    uint64_t new_node  # the directory that a RENAME moves to
    uint64_t handle
    int64_t offset
    uint64_t size  # of a READ, a READDIR, or SETATTR's
    int64_t mtime  # seconds
    uint64_t count  # of references, or of what follows at data
    uint32_t flags  # of open(2), of the file that a WRITE is for, of renameat2(2)
    uint32_t write_flags
    uint32_t mode
    uint32_t device
    uint32_t valid  # what a SETATTR sets
    uint32_t owner  # SETATTR's uid
    uint32_t group  # SETATTR's gid
    const char *name
    size_t name_size
    const char *new_name
    size_t new_name_size
    const char *data
    size_t data_size


cdef bytes copied(const char *at, size_t size)
cdef int decode(const char *buffer, size_t size, Request *to) noexcept nogil
cdef int decode_parts(
    const char *header, const char *fixed, size_t fixed_room, const char *rest, size_t rest_size,
    size_t rest_room, Request *to) noexcept nogil
