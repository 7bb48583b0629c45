# cython: language_level=3, auto_pickle=False, autotestdict=False
"""A lock that costs compiled code next to nothing while it is free.

A request takes and releases four to eight locks, nearly always free ones. ``threading.Lock`` parses
its arguments each time, which takes longer than to take the lock.
"""

from libc.stdint cimport int64_t

cdef extern from "pythread.h" nogil:
    ctypedef void *PyThread_type_lock
    ctypedef enum PyLockStatus:
        PY_LOCK_ACQUIRED
    PyThread_type_lock PyThread_allocate_lock()
    void PyThread_free_lock(PyThread_type_lock lock)
    PyLockStatus PyThread_acquire_lock_timed(
        PyThread_type_lock lock, long long microseconds, int interruptible)
    void PyThread_release_lock(PyThread_type_lock lock)

cdef int64_t LONGEST = 1 << 50  # microseconds of a wait: thirty years
cdef double MICROSECONDS = 1e6  # in a second


cdef class Lock:
    """A lock for one thread at a time, like ``threading.Lock``. A signal does not end a wait."""

    def __cinit__(self):
        self._lock = PyThread_allocate_lock()
        if self._lock == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self._lock != NULL:
            if self._is_held:
                PyThread_release_lock(self._lock)
            PyThread_free_lock(self._lock)

    cpdef bint acquire(self, bint blocking=True, double timeout=-1.0) except -1:
        """Take the lock; return whether that succeeded.

        Without *blocking*, only if it is free; with a *timeout*, in seconds, only within that time;
        -1 is none. Blocks without the GIL. Raises ValueError for another negative timeout.
        """
        cdef long long wait = -1
        if PyThread_acquire_lock_timed(self._lock, 0, 0) != PY_LOCK_ACQUIRED:
            if not blocking:
                return False
            if timeout != -1.0:
                if not timeout >= 0:
                    raise ValueError(f"a timeout of {timeout} seconds")
                wait = <long long>min(timeout * MICROSECONDS, <double>LONGEST)
            with nogil:
                if PyThread_acquire_lock_timed(self._lock, wait, 0) != PY_LOCK_ACQUIRED:
                    return False
        self._is_held = True
        return True

    cpdef object release(self):
        """Release the lock. Raises RuntimeError if it is free."""
        if not self._is_held:
            raise RuntimeError("the lock is released, and was not taken")
        self._is_held = False
        PyThread_release_lock(self._lock)

    cpdef bint locked(self) except -1:
        """Tell whether a thread has the lock, and goes on; not yet while it waits for the GIL."""
        return self._is_held

    def __enter__(self):
        return self.acquire()

    def __exit__(self, *_):
        self.release()
