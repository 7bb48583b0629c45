# cython: language_level=3
from libc.stdint cimport uint64_t

from pmxcfs.host.looking cimport Looking


cdef class Device:
    cdef readonly int descriptor
    cdef readonly int end_errno  # by which the kernel has ended the session; 0: it has not
    cdef public uint64_t turn  # the number of the reader whose turn it is to read
    cdef int _wakeup
    cdef bint _is_stopping
    cdef Looking looking

    cdef Py_ssize_t take(self, char *buffer, uint64_t number) noexcept nogil
    cdef int send(
        self, uint64_t unique, int error, const void *fixed, size_t fixed_size,
        const void *more, size_t more_size, uint64_t number) noexcept nogil
    cdef int rest(self) noexcept nogil


cdef size_t BUFFER_SIZE

cdef enum:
    PAGE = 4096  # bytes
    MAX_PAGES = 32  # of a READ or WRITE at most
    MAX_WRITE = MAX_PAGES * PAGE  # bytes
