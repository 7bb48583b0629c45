# cython: language_level=3
# The types of batches.py, which notes every change.
from pmxcfs._core cimport Tree
from pmxcfs.replica.change_log cimport ChangeLog


cdef class Batches:
    cdef Tree _tree
    cdef object _departures
    cdef ChangeLog _log
    cdef object _lock
    cdef object _settle
    cdef object _write_out
    cdef object _keep
    cdef dict _unsaved
    cdef dict _saving
    cdef list _saving_removals
    cdef bint _is_whole
    cdef object _saved_notes
    cdef object _saving_notes
    cdef bint _was_whole
    cdef bint _was_bridging

    cpdef object note_changed(self)
