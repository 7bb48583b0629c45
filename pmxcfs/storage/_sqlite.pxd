# cython: language_level=3
from libc.stdint cimport int64_t

from pmxcfs._core cimport Entry


cdef extern from "sqlite3.h" nogil:
    ctypedef struct sqlite3
    ctypedef struct sqlite3_stmt
    ctypedef int64_t sqlite3_int64
    ctypedef void (*sqlite3_destructor_type)(void*)

    enum:
        SQLITE_OK
        SQLITE_ROW
        SQLITE_DONE
        SQLITE_BUSY
        SQLITE_OPEN_READWRITE
        SQLITE_OPEN_NOMUTEX
        SQLITE_PREPARE_PERSISTENT
    sqlite3_destructor_type SQLITE_STATIC

    int sqlite3_open_v2(const char* filename, sqlite3** db, int flags, const char* vfs)
    int sqlite3_close_v2(sqlite3* db)
    int sqlite3_busy_timeout(sqlite3* db, int ms)
    int sqlite3_extended_result_codes(sqlite3* db, int onoff)
    int sqlite3_extended_errcode(sqlite3* db)
    int sqlite3_get_autocommit(sqlite3* db)
    const char* sqlite3_errmsg(sqlite3* db)
    sqlite3_int64 sqlite3_memory_used()

    int sqlite3_prepare_v3(sqlite3* db, const char* sql, int size, unsigned int flags,
                           sqlite3_stmt** statement, const char** tail)
    int sqlite3_step(sqlite3_stmt* statement)
    int sqlite3_reset(sqlite3_stmt* statement)
    int sqlite3_finalize(sqlite3_stmt* statement)
    int sqlite3_bind_int64(sqlite3_stmt* statement, int index, sqlite3_int64 value)
    sqlite3_int64 sqlite3_column_int64(sqlite3_stmt* statement, int index)
    int sqlite3_bind_null(sqlite3_stmt* statement, int index)
    int sqlite3_bind_text(sqlite3_stmt* statement, int index, const char* text, int size,
                          sqlite3_destructor_type destructor)
    int sqlite3_bind_blob(sqlite3_stmt* statement, int index, const void* data, int size,
                          sqlite3_destructor_type destructor)


cdef class Statement:
    cdef readonly str sql
    cdef sqlite3_stmt* _handle  # owned; NULL once closed
    cdef sqlite3* _database  # borrowed: owned by the Writer that prepared the statement

    cdef int put(self, int index, int64_t value) except -1
    cdef int start(self) except -1
    cdef int execute(self) except -1
    cdef int close(self) except -1


cdef class Writer:
    cdef sqlite3* _database  # owned; NULL once closed
    cdef Statement _snapshot
    cdef bint _is_holding
    cdef Statement _begin
    cdef Statement _write
    cdef Statement _delete
    cdef Statement _commit
    cdef Statement _rollback
    cdef Statement _data_version
    cdef bytes _version_name

    cdef Statement prepare(self, str sql)
    cdef int begin(self, bint patient) except -1
    cdef int hold(self) except -1
    cdef int save_entry(self, Entry entry) except -1
    cdef int save_row(self, Entry entry, int64_t parent, int64_t type, bytes name,
                      bytes data) except -1
    cdef int roll_back(self) except -1
    cpdef int run(self, Statement statement) except -1
