# cython: language_level=3, auto_pickle=False, autotestdict=False
"""A direct binding to SQLite for the transaction that saves changed entries of the tree.

Every change waits for such a transaction, and Python's sqlite3 module would take half of its time
(``bench_database``). All other use of SQLite goes through Python's module, in ``database``;
``schema`` has the statements and ``sqlite_errors`` the meaning of the error codes.

SQLite tracks the POSIX locks of a process in the memory of its library. So Python's sqlite3 module
and this module must use the same copy of the library; ``memory_used`` lets a caller check that.
Threads: only one thread at a time may use a Writer.
Contract: docs/spec/storage.md, "Writing".
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport int64_t

from pmxcfs._core cimport Entry, Tree

from pmxcfs.storage import _wal
from pmxcfs.messages import EntryType
from pmxcfs.text import to_bytes

cdef int64_t FILE = EntryType.FILE
# Bytes in a transaction; above this the time for file locks does not matter.
cdef Py_ssize_t LARGE = 65536


class SqliteError(Exception):
    """An error of SQLite; ``sqlite_errorcode`` is its extended code, as in Python's sqlite3."""

    def __init__(self, message, int code):
        super().__init__(message)
        self.sqlite_errorcode = code


def memory_used():
    """Return the bytes that this copy of the SQLite library has allocated."""
    return sqlite3_memory_used()


cdef int check(sqlite3* database, int code) except -1:
    """Raise SqliteError if *code*, returned by the last call for *database*, is an error."""
    if code == SQLITE_OK or code == SQLITE_DONE or code == SQLITE_ROW:
        return 0
    cdef bytes message = sqlite3_errmsg(database)
    raise SqliteError(message.decode("utf-8", "replace"), sqlite3_extended_errcode(database))


@cython.final
cdef class Statement:
    """A prepared statement of a Writer."""

    def __dealloc__(self):
        sqlite3_finalize(self._handle)

    cdef int put(self, int index, int64_t value) except -1:
        """Bind an integer to the parameter *index*, counted from 1."""
        return check(self._database, sqlite3_bind_int64(self._handle, index, value))

    cdef int start(self) except -1:
        """Step to the first row of a query without resetting the statement. Blocks."""
        cdef int code
        if self._handle == NULL:
            raise ValueError("the connection is closed")
        with nogil:
            code = sqlite3_step(self._handle)
        return check(self._database, code)

    cdef int execute(self) except -1:
        """Run the statement to its end with the bound values, and reset it. Blocks."""
        cdef int code
        if self._handle == NULL:
            raise ValueError("the connection is closed")
        with nogil:
            sqlite3_step(self._handle)
            code = sqlite3_reset(self._handle)
        return check(self._database, code)

    cdef int close(self) except -1:
        sqlite3_finalize(self._handle)
        self._handle = NULL
        return 0


cdef class Writer:
    """A connection that saves trees to an existing database in WAL mode.

    The statement *write* takes inode, parent, version, writer, mtime, type, name and data of a row;
    *delete* takes an inode. The constructor executes the statements *settings*. Row 0, with the
    name *version_name*, holds the tree's version. All methods raise SqliteError.
    """

    def __init__(self, bytes path not None, *, str write, str delete, tuple settings,
                 bytes version_name, int timeout_ms):
        cdef int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX
        cdef bytes vfs = _wal.VFS.encode()
        if self._database != NULL:
            raise ValueError("a Writer is opened once")
        try:
            check(self._database, sqlite3_open_v2(path, &self._database, flags, vfs))
            check(self._database, sqlite3_extended_result_codes(self._database, 1))
            check(self._database, sqlite3_busy_timeout(self._database, timeout_ms))
            for sql in settings:
                self.run(self.prepare(sql))
            self._snapshot = self.prepare("SELECT 1 FROM sqlite_master")
            self._begin = self.prepare("BEGIN IMMEDIATE")
            self._write = self.prepare(write)
            self._delete = self.prepare(delete)
            self._commit = self.prepare("COMMIT")
            self._rollback = self.prepare("ROLLBACK")
            self._data_version = self.prepare("PRAGMA data_version")
            self._version_name = version_name
        except BaseException:
            self.close()
            raise

    def __dealloc__(self):
        sqlite3_close_v2(self._database)

    cdef Statement prepare(self, str sql):
        cdef Statement statement = Statement.__new__(Statement)
        cdef bytes text = sql.encode()
        statement.sql = sql
        statement._database = self._database
        check(self._database, sqlite3_prepare_v3(
            self._database, text, -1, SQLITE_PREPARE_PERSISTENT, &statement._handle, NULL))
        return statement

    @property
    def is_stuck(self):
        """Whether a transaction could be neither committed nor rolled back, and is still open."""
        return self._database != NULL and not sqlite3_get_autocommit(self._database)

    def save(self, Tree tree not None, *, bint patient=True):
        """Commit the unsaved entries of *tree* and its version in one transaction. Blocks.

        Return the number of rows written or deleted, and the bytes of file content in them. While
        another process writes, a *patient* save waits up to the busy timeout; otherwise it fails at
        once. A failed save leaves the file unchanged, unless ``is_stuck``.
        """
        cdef Entry entry
        cdef Py_ssize_t rows = 0, size = 0
        try:
            self.begin(patient)
            for entry in tree._touched:
                if entry.inode != 0:
                    self.save_entry(entry)
                    rows += 1
                    size += 0 if entry.parent is None else len(entry._data)
            self.save_row(tree.root, 0, FILE, self._version_name, b"")
            self.run(self._commit)
        except BaseException:
            self.roll_back()
            raise
        if size > LARGE:
            self.release_snapshot()
        return rows + 1, size

    cdef int begin(self, bint patient) except -1:
        """Begin a transaction on the read snapshot that is kept from the last save. Blocks.

        The snapshot is kept open between saves and moves on with each commit. That saves half of
        the file locks of a transaction.
        """
        self.hold()
        try:
            return self.run(self._begin)
        except SqliteError as error:
            if error.sqlite_errorcode & 0xFF != SQLITE_BUSY:
                raise
        # Another process has written, or is writing. SQLite waits for it only without a snapshot.
        self.release_snapshot()
        if not patient:
            self.hold()
        return self.run(self._begin)

    cdef int hold(self) except -1:
        if not self._is_holding:
            self._snapshot.start()
            self._is_holding = True
        return 0

    def release_snapshot(self):
        """End the snapshot kept between saves. A checkpoint can't copy frames newer than it."""
        if self._is_holding:
            self._is_holding = False
            sqlite3_reset(self._snapshot._handle)

    def others_commits(self):
        """Return a number that changes with each commit of another connection. Blocks."""
        cdef int64_t number
        self.release_snapshot()
        self._data_version.start()
        number = sqlite3_column_int64(self._data_version._handle, 0)
        sqlite3_reset(self._data_version._handle)
        return number

    cdef int save_entry(self, Entry entry) except -1:
        """Write an entry's row, or delete the row if the entry was removed from the tree."""
        if entry.parent is None:
            self._delete.put(1, <int64_t>entry.inode)
            return self.run(self._delete)
        return self.save_row(entry, <int64_t>entry.parent.inode, entry.type,
                             to_bytes(entry.name), entry._data)

    cdef int save_row(self, Entry entry, int64_t parent, int64_t type, bytes name,
                      bytes data) except -1:
        """Write a row with inode, version, writer and mtime of *entry*.

        Empty data becomes NULL. Unsigned 64-bit numbers are stored as SQLite's signed ones.
        """
        cdef Statement row = self._write
        row.put(1, <int64_t>entry.inode)
        row.put(2, parent)
        row.put(3, <int64_t>entry.version)
        row.put(4, entry.writer)
        row.put(5, entry.mtime)
        row.put(6, type)
        # SQLITE_STATIC: SQLite does not copy the bytes. The caller keeps both objects alive until
        # the statement has run.
        check(self._database, sqlite3_bind_text(
            row._handle, 7, PyBytes_AS_STRING(name), <int>len(name), SQLITE_STATIC))
        check(self._database, sqlite3_bind_blob(
            row._handle, 8, PyBytes_AS_STRING(data) if data else NULL, <int>len(data),
            SQLITE_STATIC))
        return self.run(row)

    cpdef int run(self, Statement statement) except -1:
        """Execute one statement. Blocks. Tests override this method to inject failures."""
        return statement.execute()

    cdef int roll_back(self) except -1:
        """Roll back the open transaction, if any. Blocks. A failure shows in ``is_stuck``."""
        if self.is_stuck:
            try:
                self.run(self._rollback)
            except SqliteError:
                pass  # the caller checks is_stuck
        return 0

    def close(self):
        """Close the connection and roll back an open transaction. Blocks. Can be repeated."""
        cdef Statement statement
        cdef sqlite3* database = self._database
        self._is_holding = False
        for statement in (self._snapshot, self._begin, self._write, self._delete, self._commit,
                          self._rollback, self._data_version):
            if statement is not None:
                statement.close()
        self._database = NULL
        with nogil:
            sqlite3_close_v2(database)
