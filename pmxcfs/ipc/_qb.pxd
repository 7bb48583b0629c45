# cython: language_level=3
"""Declarations of libqb's IPC, and of the Linux system calls that the event loop uses."""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from posix.types cimport gid_t, pid_t, uid_t

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len

cdef extern from "<malloc.h>" nogil:
    int malloc_trim(size_t pad)

cdef extern from "<poll.h>" nogil:
    enum: POLLIN, POLLPRI, POLLOUT, POLLHUP

    struct pollfd:
        int fd
        short events
        short revents

    int poll(pollfd* fds, unsigned long count, int timeout)

cdef extern from "<sys/epoll.h>" nogil:
    enum: EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL

    union epoll_data_t:
        uint64_t u64

    struct epoll_event:
        uint32_t events
        epoll_data_t data

    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event* event)
    int epoll_wait(int epfd, epoll_event* events, int maxevents, int timeout)

cdef extern from "<sys/eventfd.h>" nogil:
    enum: EFD_CLOEXEC, EFD_NONBLOCK

    int eventfd(unsigned int initval, int flags)
    int eventfd_read(int fd, uint64_t* value)
    int eventfd_write(int fd, uint64_t value)

cdef extern from "<time.h>" nogil:
    ctypedef long time_t
    enum: CLOCK_MONOTONIC

    struct timespec:
        time_t tv_sec
        long tv_nsec

    int clock_gettime(int clock, timespec* now)

cdef extern from "<qb/qbipc_common.h>" nogil:
    enum qb_ipc_type:
        QB_IPC_SHM

    struct qb_ipc_request_header:
        int32_t id
        int32_t size

    struct qb_ipc_response_header:
        int32_t id
        int32_t size
        int32_t error

cdef extern from "<qb/qbloop.h>" nogil:
    enum qb_loop_priority:
        QB_LOOP_LOW
        QB_LOOP_MED
        QB_LOOP_HIGH

    ctypedef void (*qb_loop_job_dispatch_fn)(void* data) noexcept

cdef extern from "<qb/qbipcs.h>" nogil:
    struct qb_ipcs_connection:
        pass
    ctypedef qb_ipcs_connection qb_ipcs_connection_t

    struct qb_ipcs_service:
        pass
    ctypedef qb_ipcs_service qb_ipcs_service_t

    struct qb_ipcs_connection_stats:
        int32_t client_pid

    ctypedef int32_t (*qb_ipcs_dispatch_fn_t)(int32_t fd, int32_t revents, void* data) noexcept

    struct qb_ipcs_poll_handlers:
        int32_t (*job_add)(
            qb_loop_priority p, void* data, qb_loop_job_dispatch_fn fn) noexcept
        int32_t (*dispatch_add)(
            qb_loop_priority p, int32_t fd, int32_t events, void* data,
            qb_ipcs_dispatch_fn_t fn) noexcept
        int32_t (*dispatch_mod)(
            qb_loop_priority p, int32_t fd, int32_t events, void* data,
            qb_ipcs_dispatch_fn_t fn) noexcept
        int32_t (*dispatch_del)(int32_t fd) noexcept

    struct qb_ipcs_service_handlers:
        int32_t (*connection_accept)(qb_ipcs_connection_t* c, uid_t uid, gid_t gid) noexcept
        void (*connection_created)(qb_ipcs_connection_t* c) noexcept
        int32_t (*msg_process)(qb_ipcs_connection_t* c, void* data, size_t size) noexcept
        int32_t (*connection_closed)(qb_ipcs_connection_t* c) noexcept
        void (*connection_destroyed)(qb_ipcs_connection_t* c) noexcept

    qb_ipcs_service_t* qb_ipcs_create(
        const char* name, int32_t service_id, qb_ipc_type type, qb_ipcs_service_handlers* handlers)
    void qb_ipcs_poll_handlers_set(qb_ipcs_service_t* s, qb_ipcs_poll_handlers* handlers)
    int32_t qb_ipcs_run(qb_ipcs_service_t* s)
    void qb_ipcs_destroy(qb_ipcs_service_t* s)
    ssize_t qb_ipcs_response_sendv(qb_ipcs_connection_t* c, const iovec* iov, size_t iov_len)
    void qb_ipcs_connection_ref(qb_ipcs_connection_t* c)
    void qb_ipcs_connection_unref(qb_ipcs_connection_t* c)
    void qb_ipcs_disconnect(qb_ipcs_connection_t* c)
    void qb_ipcs_context_set(qb_ipcs_connection_t* c, void* context)
    void* qb_ipcs_context_get(qb_ipcs_connection_t* c)
    int32_t qb_ipcs_connection_stats_get(
        qb_ipcs_connection_t* c, qb_ipcs_connection_stats* stats, int32_t clear_after_read)
    int32_t qb_ipcs_connection_get_buffer_size(qb_ipcs_connection_t* c)

cdef extern from "<qb/qbipcc.h>" nogil:
    struct qb_ipcc_connection:
        pass
    ctypedef qb_ipcc_connection qb_ipcc_connection_t

    qb_ipcc_connection_t* qb_ipcc_connect_async(
        const char* name, size_t max_msg_size, int* connect_fd)
    int qb_ipcc_connect_continue(qb_ipcc_connection_t* c)
    void qb_ipcc_disconnect(qb_ipcc_connection_t* c)
    ssize_t qb_ipcc_sendv(qb_ipcc_connection_t* c, const iovec* iov, size_t iov_len)
    ssize_t qb_ipcc_recv(
        qb_ipcc_connection_t* c, void* msg_ptr, size_t msg_len, int32_t ms_timeout)
    int32_t qb_ipcc_get_buffer_size(qb_ipcc_connection_t* c)


cdef inline int64_t now_ms() noexcept nogil:
    """Return the monotonic clock in milliseconds."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1000 + now.tv_nsec // 1000000
