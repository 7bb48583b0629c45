# cython: language_level=3, auto_pickle=False, autotestdict=False
"""SQLite's write-ahead log, written with one system call a transaction.

SQLite writes a transaction as frames, one for each page that changed, and each frame with two
calls: 24 bytes of header, then the page. On a file system with a journal of its own these calls
take longer than all the rest of a commit (``bench_database``). So a connection opened with the VFS
``pmxcfs`` collects frames and writes them together.

It is the system's VFS but for this. What is collected goes to the file before the last frame of a
transaction returns, which is before any connection is told of the transaction, and before anything
else is done with the log; so nobody can tell the difference, and what fails fails the commit. What
is still there when the writer's lock is released belongs to no transaction, and is forgotten.
Formats: https://sqlite.org/fileformat2.html#walformat, https://sqlite.org/walformat.html#locks.
"""

from libc.string cimport memcpy, memset

cdef extern from "sqlite3.h" nogil:
    ctypedef long long sqlite3_int64
    ctypedef struct sqlite3_io_methods:
        int (*xClose)(sqlite3_file*) noexcept nogil
        int (*xRead)(sqlite3_file*, void*, int, sqlite3_int64) noexcept nogil
        int (*xWrite)(sqlite3_file*, const void*, int, sqlite3_int64) noexcept nogil
        int (*xTruncate)(sqlite3_file*, sqlite3_int64) noexcept nogil
        int (*xSync)(sqlite3_file*, int) noexcept nogil
        int (*xFileSize)(sqlite3_file*, sqlite3_int64*) noexcept nogil
        int (*xShmLock)(sqlite3_file*, int, int, int) noexcept nogil
    ctypedef struct sqlite3_file:
        const sqlite3_io_methods* pMethods
    ctypedef struct sqlite3_vfs:
        int szOsFile
        sqlite3_vfs* pNext
        const char* zName
        int (*xOpen)(sqlite3_vfs*, const char*, sqlite3_file*, int, int*) noexcept nogil

    enum:
        SQLITE_OK
        SQLITE_NOMEM
        SQLITE_OPEN_MAIN_DB
        SQLITE_OPEN_WAL
        SQLITE_SHM_UNLOCK

    sqlite3_vfs* sqlite3_vfs_find(const char* name)
    int sqlite3_vfs_register(sqlite3_vfs* vfs, int make_default)
    sqlite3_file* sqlite3_database_file_object(const char* name)
    void* sqlite3_malloc(int size)
    void sqlite3_free(void* memory)

VFS = "pmxcfs"

cdef enum:
    FRAME_HEADER = 24  # bytes; no page is that small
    COMMIT_FIELD = 4  # where the header has four bytes that are 0 but in a transaction's last frame
    LOG_HEADER = 32  # bytes
    PAGE_SIZE_FIELD = 8  # where the log's header has it, in four bytes, the highest first
    WRITER_LOCK = 0  # which of the locks in shared memory a transaction holds
    ROOM = 65536  # bytes that are collected at most
    NOWHERE = -1  # an offset that no write has

cdef struct Log:
    sqlite3_file* database
    char* collected  # owned: frames that the file does not have yet
    int size  # bytes of them
    sqlite3_int64 start  # where in the file they belong
    sqlite3_int64 end  # where the last write ended, collected or not; NOWHERE if that is not known
    int page_size  # 0: not known yet
    bint awaits_page  # a frame's header has come, its page has not
    bint is_last  # that frame is its transaction's last one

cdef struct Extra:
    # What a log or a database has in memory behind what the system's VFS has there.
    const sqlite3_io_methods* system  # the system's methods for it
    sqlite3_io_methods methods  # the same, but for those below
    Log log  # of a log
    Log* its_log  # of a database; NULL while none is open

cdef sqlite3_vfs* system
cdef sqlite3_vfs vfs
cdef bytes vfs_name  # where vfs has it


cdef Extra* extra_of(sqlite3_file* file) noexcept nogil:
    return <Extra*>(<char*>file + system.szOsFile)


cdef void forget(Log* log) noexcept nogil:
    """Forget what is collected."""
    log.size = 0
    log.awaits_page = False


cdef int write_out(sqlite3_file* file, Extra* extra) noexcept nogil:
    """Write what is collected. What can't be written is forgotten: its transaction fails."""
    cdef int size = extra.log.size, code = SQLITE_OK
    extra.log.size = 0
    if size:
        code = extra.system.xWrite(file, extra.log.collected, size, extra.log.start)
        if code != SQLITE_OK:
            extra.log.end = NOWHERE
    return code


cdef int learn_page_size(sqlite3_file* file, Extra* extra) noexcept nogil:
    """Read from the log's header how long a page is; it is the same as long as the log is open."""
    cdef unsigned char header[LOG_HEADER]
    cdef int code = extra.system.xRead(file, header, LOG_HEADER, 0)
    cdef unsigned char* field = header + PAGE_SIZE_FIELD
    if code == SQLITE_OK:
        extra.log.page_size = field[0] << 24 | field[1] << 16 | field[2] << 8 | field[3]
    return code


cdef bint ends_transaction(const void* header) noexcept nogil:
    cdef const char* field = <const char*>header + COMMIT_FIELD
    return field[0] or field[1] or field[2] or field[3]


cdef int log_write(sqlite3_file* file, const void* data, int size,
                   sqlite3_int64 offset) noexcept nogil:
    """Collect a frame that follows what was written before; write it out if it is the last one.

    All that is not a header and then a page, right behind the write before, is written at once:
    the log's header, a frame in other pieces, and the checksums of earlier frames, which SQLite
    corrects after the last one if a page was written twice.
    """
    cdef Extra* extra = extra_of(file)
    cdef Log* log = &extra.log
    cdef int code = SQLITE_OK
    if not log.page_size and offset:
        code = learn_page_size(file, extra)
    cdef bint follows = offset == log.end
    cdef bint is_page = follows and log.awaits_page and size == log.page_size
    cdef bint is_header = size == FRAME_HEADER and not is_page
    cdef bint is_collected = is_page or (follows and is_header and not log.awaits_page)
    if code == SQLITE_OK and (not is_collected or log.size + size > ROOM):
        code = write_out(file, extra)
    if code == SQLITE_OK and not is_collected:
        code = extra.system.xWrite(file, data, size, offset)
    if code != SQLITE_OK:
        log.end = NOWHERE
        return code
    log.end = offset + size
    log.awaits_page = is_header
    if is_header:
        log.is_last = ends_transaction(data)
    if not is_collected:
        return SQLITE_OK
    if log.size == 0:
        log.start = offset
    memcpy(log.collected + log.size, data, <size_t>size)
    log.size += size
    return write_out(file, extra) if is_page and log.is_last else SQLITE_OK


cdef int log_read(sqlite3_file* file, void* data, int size, sqlite3_int64 offset) noexcept nogil:
    cdef Extra* extra = extra_of(file)
    cdef int code = write_out(file, extra)
    return code or extra.system.xRead(file, data, size, offset)


cdef int log_truncate(sqlite3_file* file, sqlite3_int64 size) noexcept nogil:
    cdef Extra* extra = extra_of(file)
    cdef int code = write_out(file, extra)
    return code or extra.system.xTruncate(file, size)


cdef int log_sync(sqlite3_file* file, int flags) noexcept nogil:
    cdef Extra* extra = extra_of(file)
    cdef int code = write_out(file, extra)
    return code or extra.system.xSync(file, flags)


cdef int log_file_size(sqlite3_file* file, sqlite3_int64* size) noexcept nogil:
    cdef Extra* extra = extra_of(file)
    cdef int code = write_out(file, extra)
    return code or extra.system.xFileSize(file, size)


cdef int log_close(sqlite3_file* file) noexcept nogil:
    cdef Extra* extra = extra_of(file)
    sqlite3_free(extra.log.collected)
    extra_of(extra.log.database).its_log = NULL
    return extra.system.xClose(file)


cdef int database_lock(sqlite3_file* file, int first, int count, int flags) noexcept nogil:
    """Take or release locks in shared memory."""
    cdef Extra* extra = extra_of(file)
    if flags & SQLITE_SHM_UNLOCK and first == WRITER_LOCK and extra.its_log != NULL:
        forget(extra.its_log)
    return extra.system.xShmLock(file, first, count, flags)


cdef int open_file(sqlite3_vfs* _, const char* name, sqlite3_file* file, int flags,
                   int* flags_out) noexcept nogil:
    """Open any file as the system's VFS does; give a log and its database the methods above."""
    cdef Extra* extra = extra_of(file)
    cdef int code
    memset(extra, 0, sizeof(Extra))
    if flags & SQLITE_OPEN_WAL:
        extra.log.collected = <char*>sqlite3_malloc(ROOM)
        if extra.log.collected == NULL:
            return SQLITE_NOMEM
    code = system.xOpen(system, name, file, flags, flags_out)
    if file.pMethods == NULL:
        sqlite3_free(extra.log.collected)
        return code
    extra.system = file.pMethods
    extra.methods = file.pMethods[0]
    if flags & SQLITE_OPEN_MAIN_DB:
        extra.methods.xShmLock = database_lock
    elif flags & SQLITE_OPEN_WAL:
        extra.log.end = NOWHERE
        extra.log.database = sqlite3_database_file_object(name)
        extra_of(extra.log.database).its_log = &extra.log
        extra.methods.xClose = log_close
        extra.methods.xRead = log_read
        extra.methods.xWrite = log_write
        extra.methods.xTruncate = log_truncate
        extra.methods.xSync = log_sync
        extra.methods.xFileSize = log_file_size
    else:
        return code
    file.pMethods = &extra.methods
    return code


cdef int register() except -1:
    """Make the VFS known to SQLite, under its name."""
    global system, vfs, vfs_name
    system = sqlite3_vfs_find(NULL)
    if system == NULL:
        raise RuntimeError("SQLite has no file system")
    vfs = system[0]
    vfs.szOsFile += <int>sizeof(Extra)
    vfs.pNext = NULL
    vfs_name = VFS.encode()
    vfs.zName = vfs_name
    vfs.xOpen = open_file
    if sqlite3_vfs_register(&vfs, 0) != SQLITE_OK:
        raise RuntimeError("SQLite takes no further VFS")
    return 0


register()
