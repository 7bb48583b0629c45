# cython: language_level=3
# The types of schedule.py, in which every change is noted.


cdef class Schedule:
    cdef double _first
    cdef double _first_configuration
    cdef double _last_configuration
    cdef tuple _taken

    cpdef bint touch(self, double now, bint is_configuration) except -1
    cpdef object note_change(self, double now, bint is_configuration)
