# cython: language_level=3
# The types of recording.py, which runs for every change.
cimport cython
from libc.stdint cimport uint64_t

from pmxcfs._core cimport Entry, Tree
from pmxcfs.replica.tickets cimport Ticket
from pmxcfs.storage.changes cimport pack_mutation
from pmxcfs.text cimport to_bytes
from pmxcfs.tree.apply cimport Change


cdef class Applied:
    cdef readonly Ticket ticket
    cdef readonly object mutation
    cdef readonly Change change
    cdef readonly uint64_t version


@cython.locals(path=str, size=Py_ssize_t)
cpdef Py_ssize_t size_of(mutation, Tree tree) except -1
cpdef bint is_heartbeat(str path) except -1
cdef Py_ssize_t _size_at(str path, Tree tree) except -1
cdef object _row(Entry entry, tuple state, done)


@cython.locals(applied=Applied, path=str)
cpdef bint can_be_staged(list done) except -1


@cython.locals(applied=Applied, change=Change)
cpdef bint is_configuration(list done) except -1


@cython.locals(bodies=list, applied=Applied, ticket=Ticket, entry=Entry)
cpdef list records_of(list done, Tree tree, uint64_t segment, uint64_t now_ns)
