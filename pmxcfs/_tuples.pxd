# cython: language_level=3
# Named tuples, made without running Python code: calling their class costs ten times as much.
from cpython.ref cimport PyObject

cdef extern from "Python.h":
    ctypedef struct TypeObject "PyTypeObject":
        object (*tp_new)(type kind, object arguments, PyObject *keywords)
    TypeObject PyTuple_Type


cdef inline object named(type kind, tuple fields):
    # An object of *kind*, a NamedTuple without defaults that are left out, with these *fields*.
    return PyTuple_Type.tp_new(kind, (fields,), NULL)
