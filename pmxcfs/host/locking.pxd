# cython: language_level=3
"""What other compiled modules call of ``locking``."""


cdef class Lock:
    cdef void *_lock
    cdef bint _is_held

    cpdef bint acquire(self, bint blocking=*, double timeout=*) except -1
    cpdef object release(self)
    cpdef bint locked(self) except -1
