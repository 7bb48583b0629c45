# cython: language_level=3
"""The kernel's FUSE protocol: what <linux/fuse.h> declares, as far as it is used."""
from libc.stdint cimport int32_t, uint16_t, uint32_t, uint64_t

cdef extern from "<linux/fuse.h>" nogil:
    enum:
        FUSE_KERNEL_VERSION
        FUSE_KERNEL_MINOR_VERSION
        # Opcodes
        FUSE_LOOKUP
        FUSE_FORGET
        FUSE_GETATTR
        FUSE_SETATTR
        FUSE_READLINK
        FUSE_SYMLINK
        FUSE_MKNOD
        FUSE_MKDIR
        FUSE_UNLINK
        FUSE_RMDIR
        FUSE_RENAME
        FUSE_LINK
        FUSE_OPEN
        FUSE_READ
        FUSE_WRITE
        FUSE_STATFS
        FUSE_RELEASE
        FUSE_FSYNC
        FUSE_FLUSH
        FUSE_INIT
        FUSE_OPENDIR
        FUSE_READDIR
        FUSE_RELEASEDIR
        FUSE_FSYNCDIR
        FUSE_CREATE
        FUSE_INTERRUPT
        FUSE_BATCH_FORGET
        FUSE_READDIRPLUS
        FUSE_RENAME2
        # What a SETATTR sets
        FATTR_MODE
        FATTR_UID
        FATTR_GID
        FATTR_SIZE
        FATTR_MTIME
        FATTR_FH
        # A WRITE of pages, not of write(2)
        FUSE_WRITE_CACHE
        # What is told of an open file
        FOPEN_KEEP_CACHE
        FOPEN_NOFLUSH
        # What INIT agrees on
        FUSE_ATOMIC_O_TRUNC
        FUSE_BIG_WRITES
        FUSE_DO_READDIRPLUS
        FUSE_READDIRPLUS_AUTO
        FUSE_PARALLEL_DIROPS
        FUSE_ABORT_ERROR
        FUSE_MAX_PAGES
        FUSE_CACHE_SYMLINKS
        FUSE_INIT_EXT

    struct fuse_in_header:
        uint32_t len
        uint32_t opcode
        uint64_t unique
        uint64_t nodeid
        uint32_t uid
        uint32_t gid
        uint32_t pid

    struct fuse_forget_in:
        uint64_t nlookup

    struct fuse_forget_one:
        uint64_t nodeid
        uint64_t nlookup

    struct fuse_batch_forget_in:
        uint32_t count

    struct fuse_getattr_in:
        uint32_t getattr_flags

    struct fuse_setattr_in:
        uint32_t valid
        uint64_t fh
        uint64_t size
        uint64_t mtime
        uint32_t mode
        uint32_t uid
        uint32_t gid

    struct fuse_mknod_in:
        uint32_t mode
        uint32_t rdev

    struct fuse_mkdir_in:
        uint32_t mode

    struct fuse_rename_in:
        uint64_t newdir

    struct fuse_rename2_in:
        uint64_t newdir
        uint32_t flags

    struct fuse_open_in:
        uint32_t flags

    struct fuse_create_in:
        uint32_t flags
        uint32_t mode

    struct fuse_read_in:
        uint64_t fh
        uint64_t offset
        uint32_t size

    struct fuse_write_in:
        uint64_t fh
        uint64_t offset
        uint32_t size
        uint32_t write_flags
        uint32_t flags

    struct fuse_release_in:
        uint64_t fh

    struct fuse_flush_in:
        uint64_t fh

    struct fuse_fsync_in:
        uint64_t fh

    struct fuse_interrupt_in:
        uint64_t unique

    struct fuse_init_in:
        uint32_t major
        uint32_t minor
        uint32_t max_readahead
        uint32_t flags
        uint32_t flags2

    struct fuse_out_header:
        uint32_t len
        int32_t error
        uint64_t unique

    struct fuse_attr:
        uint64_t ino
        uint64_t size
        uint64_t blocks
        uint64_t atime
        uint64_t mtime
        uint64_t ctime
        uint32_t mode
        uint32_t nlink
        uint32_t uid
        uint32_t gid
        uint32_t blksize

    struct fuse_entry_out:
        uint64_t nodeid
        uint64_t entry_valid
        uint64_t attr_valid
        fuse_attr attr

    struct fuse_attr_out:
        uint64_t attr_valid
        fuse_attr attr

    struct fuse_open_out:
        uint64_t fh
        uint32_t open_flags

    struct fuse_write_out:
        uint32_t size

    struct fuse_kstatfs:
        uint64_t blocks
        uint64_t bfree
        uint64_t bavail
        uint64_t files
        uint64_t ffree
        uint32_t bsize
        uint32_t namelen
        uint32_t frsize

    struct fuse_statfs_out:
        fuse_kstatfs st

    struct fuse_init_out:
        uint32_t major
        uint32_t minor
        uint32_t max_readahead
        uint32_t flags
        uint16_t max_background
        uint16_t congestion_threshold
        uint32_t max_write
        uint32_t time_gran
        uint16_t max_pages
        uint32_t flags2

    struct fuse_dirent:
        uint64_t ino
        uint64_t off
        uint32_t namelen
        uint32_t type
        char name[0]

    struct fuse_direntplus:
        fuse_entry_out entry_out
        fuse_dirent dirent
