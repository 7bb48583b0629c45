# cython: language_level=3, auto_pickle=False, autotestdict=False
"""An SQLite VFS that writes a transaction to the write-ahead log with one system call.

SQLite writes a transaction as frames, one for each changed page, and each frame with two calls: 24
bytes of header, then the page. On a journaling file system these calls take longer than the rest of
the commit (``bench_database``). So a connection opened with the VFS ``pmxcfs`` collects the frames
in memory and writes them together.

All other operations are those of the system's default VFS. The collected frames are written to the
log before SQLite's write of the transaction's last frame returns. That is before SQLite publishes
the transaction to other connections, and before any other operation on the log. So the content of
the files is the same as with the default VFS, and a failed write fails the commit. Frames that are
still collected when the writer lock is released belong to no transaction and are discarded.
Contract: docs/spec/storage.md, "Writing".
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
    FRAME_HEADER = 24  # bytes; smaller than any page
    COMMIT_FIELD = 4  # offset in the frame header: 4 bytes, nonzero in a transaction's last frame
    LOG_HEADER = 32  # bytes
    PAGE_SIZE_FIELD = 8  # offset in the log header: 4 bytes, big endian
    WRITER_LOCK = 0  # index of the shared-memory lock that a write transaction holds
    ROOM = 65536  # bytes that are collected before they are written
    NOWHERE = -1  # stands for an unknown offset

cdef struct Log:
    sqlite3_file* database
    char* collected  # owned: frames that are not in the file yet
    int size  # bytes collected
    sqlite3_int64 start  # offset in the file where the collected bytes belong
    sqlite3_int64 end  # offset behind the last write, collected or not; NOWHERE if unknown
    int page_size  # bytes; 0 if not known yet
    bint awaits_page  # a frame's header was written, its page comes next
    bint is_last  # the current frame is the last of its transaction

cdef struct Extra:
    # Our state of an open log or database file; it follows the system VFS's state in memory.
    const sqlite3_io_methods* system  # the system VFS's methods for the file
    sqlite3_io_methods methods  # the system's methods with some replaced by those below
    Log log  # used if the file is a log
    Log* its_log  # used if the file is a database: its open log, or NULL

cdef sqlite3_vfs* system
cdef sqlite3_vfs vfs
cdef bytes vfs_name  # owns the string that vfs.zName points to


cdef Extra* extra_of(sqlite3_file* file) noexcept nogil:
    return <Extra*>(<char*>file + system.szOsFile)


cdef void discard(Log* log) noexcept nogil:
    """Discard the collected frames."""
    log.size = 0
    log.awaits_page = False


cdef int write_out(sqlite3_file* file, Extra* extra) noexcept nogil:
    """Write the collected frames. If that fails, discard them: their transaction fails, too."""
    cdef int size = extra.log.size, code = SQLITE_OK
    extra.log.size = 0
    if size:
        code = extra.system.xWrite(file, extra.log.collected, size, extra.log.start)
        if code != SQLITE_OK:
            extra.log.end = NOWHERE
    return code


cdef int learn_page_size(sqlite3_file* file, Extra* extra) noexcept nogil:
    """Read the page size from the log header. It is constant while the log is open."""
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
    """Collect a frame that follows the last write; write all collected frames after the last one.

    A write that is not a frame header or its page, directly behind the last write, is passed on at
    once: the log header, a frame in other pieces, and the checksums of earlier frames, which SQLite
    corrects after the last frame if a page was written twice.
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
    """Take or release shared-memory locks; discard collected frames with the writer lock."""
    cdef Extra* extra = extra_of(file)
    if flags & SQLITE_SHM_UNLOCK and first == WRITER_LOCK and extra.its_log != NULL:
        discard(extra.its_log)
    return extra.system.xShmLock(file, first, count, flags)


cdef int open_file(sqlite3_vfs* _, const char* name, sqlite3_file* file, int flags,
                   int* flags_out) noexcept nogil:
    """Open a file with the system's VFS; replace some methods if it is a log or a database."""
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
    """Register the VFS with SQLite."""
    global system, vfs, vfs_name
    system = sqlite3_vfs_find(NULL)
    if system == NULL:
        raise RuntimeError("SQLite has no default VFS")
    vfs = system[0]
    vfs.szOsFile += <int>sizeof(Extra)
    vfs.pNext = NULL
    vfs_name = VFS.encode()
    vfs.zName = vfs_name
    vfs.xOpen = open_file
    if sqlite3_vfs_register(&vfs, 0) != SQLITE_OK:
        raise RuntimeError("SQLite could not register the VFS")
    return 0


register()
