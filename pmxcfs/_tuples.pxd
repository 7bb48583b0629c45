# cython: language_level=3
# Named tuples, made without running Python code: calling their class costs ten times as much.
from cpython.object cimport PyObject, PyTypeObject

cdef extern from "Python.h":
    PyTypeObject PyTuple_Type


cdef inline object named(type kind, tuple fields):
    # An object of *kind*, a NamedTuple without defaults that are left out, with these *fields*.
    cdef tuple arguments = (fields,)
    return PyTuple_Type.tp_new(kind, <PyObject *>arguments, NULL)
