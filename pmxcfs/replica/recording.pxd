# cython: language_level=3
# The types of recording.py, which runs for every change.
cimport cython
from libc.stdint cimport uint64_t

from pmxcfs._core cimport Entry, Tree
from pmxcfs.replica.tickets cimport Ticket
from pmxcfs.tree.apply cimport Change

cpdef Py_ssize_t size_of(mutation, Tree tree) except -1
cpdef bint is_heartbeat(str path) except -1
cdef Py_ssize_t _size_at(str path, Tree tree) except -1
cdef object _row(Entry entry, tuple state, done)


@cython.locals(change=Change)
cpdef bint can_be_staged(done) except -1


@cython.locals(change=Change)
cpdef bint is_configuration(done) except -1


@cython.locals(bodies=list, ticket=Ticket, entry=Entry)
cpdef list records_of(done, Tree tree, uint64_t segment, now_ns)
