# cython: language_level=3
"""librrd: create a round-robin database, and add values to one. Both calls block without the GIL.

Threads: any number of threads may call, each for another file. Only functions of librrd whose names
end in ``_r`` are used, and of their arguments none that its documentation (rrdthreads) calls unsafe
with threads: no time in the style of at(1). Unlike the others they don't look at the environment,
so none of them waits for an rrdcached. librrd keeps one error text per thread. It does not empty
this text before a call and takes what is left there for a failure of the call.

librrd passes its error texts, which contain the name of the file, to printf as a format. It
writes to stdout instead of a file "-". So a name must be an absolute path without "%".
Contract: docs/spec/status.md, "RRD".
"""

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.time cimport time_t

import os

from pmxcfs.errors import Failed, Invalid

cdef extern from "<rrd.h>" nogil:
    ctypedef struct rrd_context_t

    rrd_context_t* rrd_get_context()
    void rrd_clear_error()
    char* rrd_get_error()
    int rrd_create_r(const char* filename, unsigned long pdp_step, time_t last_up, int argc,
                     const char** argv)
    int rrd_update_r(const char* filename, const char* template, int argc, const char** argv)

cdef enum:
    MAX_DEFINITIONS = 1024  # far more than any file has columns and archives


cdef int check(str file, str text) except -1:
    """Raise Invalid if *text*, an argument of a call for *file*, would not reach librrd whole."""
    if not text or "\0" in text:
        raise Invalid(f"{file}: an argument for librrd is empty or has a NUL: {text!r}")
    return 0


cdef int check_file(str file) except -1:
    check(file, file)
    if not file.startswith("/") or "%" in file:
        raise Invalid(f"{file}: librrd needs an absolute path without %")
    return 0


cdef int empty_error_text() except -1:
    """Empty this thread's error text; allocate it before the thread's first call."""
    if rrd_get_context() == NULL:
        raise MemoryError("there is no memory for the error text of librrd")
    rrd_clear_error()
    return 0


cdef object failure(str file):
    """Return the error of this thread's last call.

    librrd gives no text, and loses errno, if it can't write a new file. Most texts name the file.
    """
    cdef bytes raw = rrd_get_error()
    text = raw.decode("utf-8", "replace") or "not written; is there room on its file system?"
    return Failed(text if file in text else f"{file}: {text}")


def create(str file not None, list definitions not None, *, time_t start, unsigned long step):
    """Create the database *file*, or replace it, with *definitions* as in rrdcreate(1).

    All values are later than *start*, in seconds since 1970, and *step* seconds apart. A file that
    can't be written completely is not created. Raises Failed with the file and the reason, and
    Invalid for arguments that librrd must not get.
    """
    cdef list encoded = []
    cdef const char** arguments
    cdef bytes path = os.fsencode(file), each
    cdef const char* c_path = path
    cdef int result, count = 0
    check_file(file)
    for definition in definitions:
        check(file, definition)
        encoded.append(definition.encode())
    if not 0 < len(encoded) <= MAX_DEFINITIONS or start <= 0 or step == 0:
        raise Invalid(f"{file}: {len(encoded)} definitions, start {start}, step {step}")
    empty_error_text()
    arguments = <const char**>PyMem_Malloc(<size_t>len(encoded) * sizeof(char*))
    if arguments == NULL:
        raise MemoryError
    try:
        for each in encoded:
            arguments[count] = each  # owned by the list
            count += 1
        with nogil:
            result = rrd_create_r(c_path, step, start, count, arguments)
    finally:
        PyMem_Free(arguments)
    if result:
        raise failure(file)


def update(str file not None, str values not None):
    """Add one line ``TIME:VALUE:…`` to the database *file*; TIME is in seconds since 1970.

    Raises Failed with the file and the reason, also for a time that is not later than the last one,
    and Invalid for arguments that librrd must not get.
    """
    cdef bytes path = os.fsencode(file), line = values.encode()
    cdef const char* c_path = path
    cdef const char* c_line = line
    cdef int result
    check_file(file)
    check(file, values)
    time = values.partition(":")[0]
    if not (time.isascii() and time.isdigit()) or "@" in values:
        raise Invalid(f"{file}: not TIME:VALUE:…: {values!r}")
    empty_error_text()
    with nogil:
        result = rrd_update_r(c_path, NULL, 1, &c_line)
    if result:
        raise failure(file)
