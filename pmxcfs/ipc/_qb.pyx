# cython: language_level=3, auto_pickle=False, autotestdict=False
"""libqb's IPC server, which local clients talk to.

It knows nothing of what requests mean: a function says who may connect, another turns a
request into an answer. It runs libqb on an epoll loop of its own, because libqb's can't be stopped
from another thread. What a client can write is never trusted: sizes are checked, and a request is
copied before anybody looks at it.

Threads: ``run`` belongs to one thread, which all of libqb's calls and callbacks are made on (there
are no locks inside libqb); it holds the GIL only while Python answers. ``stop`` may come from any.
Exceptions never cross a frame of C: a callback stores one, ``run`` raises it, and can be called
again. Contract: docs/spec/ipc.md.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.errno cimport EFBIG, EINTR, EINVAL, EIO, EMFILE, ENOMEM, errno
from libc.stdint cimport SIZE_MAX, int32_t, int64_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

import os

from pmxcfs.errors import IpcError

cdef extern from *:
    """
    /* The loop that libqb calls back from: its poll handlers get no pointer of ours. */
    static _Thread_local void *pmxcfs_current_loop;
    """
    void* current "pmxcfs_current_loop"

# What msg_process returns, "back off": with any other, libqb goes on to the next message and then
# waits, for as long as it takes, until the client has announced them all. It may never do that.
cdef enum:
    ONE_AT_A_TIME = -1

cdef enum:
    EVENTS_AT_ONCE = 64
    STOP = 0  # the generation of the event that is not libqb's
    FREE = 0  # of a descriptor that nobody watches
    MOST_CONNECTIONS = 512  # each has some 3 MiB of shared memory and a descriptor
    KEPT_FOR_ROOT = 64  # of them, so that no other user can lock the system's own tools out
    MOST_STRANGERS = 64  # that have connected and not said who they are
    HANDSHAKE_TIMEOUT_MS = 2000  # that a stranger has for it
    STRANGER_CHECK_MS = 500  # between looks at strangers' time
    LARGEST_BUFFER = 8 << 20  # bytes that a client may want for a message
    # Each connection has a buffer in malloc's heap, which would stay as large as it ever was.
    CLOSED_BEFORE_TRIM = 64
    MOST_EMPTY = 3  # times that a client may say that there is a message when there is none
    SMALLEST_PAGE = 4096
    EVENT_BITS = POLLIN | POLLPRI | POLLOUT  # the same numbers for poll and epoll

cdef uint32_t CHUNK_MARK = 0xA1A1A1A1  # stands before a message in libqb's ring


cdef object failure(str call, int code):
    return IpcError(f"{call}: {os.strerror(code)}", code)


cdef struct Watch:
    uint32_t generation  # tells a descriptor from an earlier one with its number
    qb_ipcs_dispatch_fn_t call
    void* data
    int64_t expires_ms  # monotonic; 0: never. Only strangers have one
    bint is_client  # data is its connection
    int empty  # announcements of nothing, one after the other


cdef struct Job:
    qb_loop_job_dispatch_fn call
    void* data


cdef struct Loop:
    PyObject* server  # borrowed: the Server that has this loop
    qb_ipcs_service_t* service
    int epoll
    int wake  # an eventfd: stop
    uint32_t generation
    Watch* watches  # by descriptor
    int capacity
    int strangers
    Job* jobs
    size_t job_count
    qb_ipcs_connection_t* admitted  # during its accept: the next descriptor is its own
    qb_ipcs_connection_t* doomed  # a reference; disconnected when its callback has returned
    int connections
    unsigned int closed  # connections so far
    uint64_t messages  # so far
    bint must_return  # an exception waits to be raised


cdef inline Loop* here() noexcept nogil:
    """Return the loop that this thread is in."""
    return <Loop*>current


# What libqb asks of a loop

cdef int32_t on_job_add(qb_loop_priority p, void* data, qb_loop_job_dispatch_fn fn) noexcept nogil:
    cdef Job* jobs = <Job*>realloc(here().jobs, (here().job_count + 1) * sizeof(Job))
    if jobs == NULL:
        return -ENOMEM
    here().jobs = jobs
    jobs[here().job_count].call = fn
    jobs[here().job_count].data = data
    here().job_count += 1
    return 0


cdef int32_t on_dispatch_add(qb_loop_priority p, int32_t fd, int32_t events, void* data,
                             qb_ipcs_dispatch_fn_t fn) noexcept nogil:
    if fd < 0 or not make_room(here(), fd):
        return -ENOMEM
    cdef Watch* watch = &here().watches[fd]
    here().generation += 1
    if here().generation == STOP:
        here().generation += 1
    watch.generation = here().generation
    watch.call = fn
    watch.data = data
    watch.expires_ms = 0
    watch.is_client = data == here().admitted
    watch.empty = 0
    if data != here().service and data != here().admitted:
        watch.expires_ms = now_ms() + HANDSHAKE_TIMEOUT_MS
        here().strangers += 1
    return control(EPOLL_CTL_ADD, fd, events)


cdef int32_t on_dispatch_mod(qb_loop_priority p, int32_t fd, int32_t events, void* data,
                             qb_ipcs_dispatch_fn_t fn) noexcept nogil:
    if fd < 0 or fd >= here().capacity or here().watches[fd].generation == FREE:
        return -EINVAL
    here().watches[fd].call = fn
    here().watches[fd].data = data
    return control(EPOLL_CTL_MOD, fd, events)


cdef int32_t on_dispatch_del(int32_t fd) noexcept nogil:
    if fd < 0 or fd >= here().capacity or here().watches[fd].generation == FREE:
        return 0
    if here().watches[fd].expires_ms:
        here().strangers -= 1
    here().watches[fd].generation = FREE
    return control(EPOLL_CTL_DEL, fd, 0)


cdef bint make_room(Loop* loop, int fd) noexcept nogil:
    """Let the table of watches reach *fd*; tell whether there was memory for it."""
    if fd < loop.capacity:
        return True
    cdef int capacity = 2 * fd + 64
    cdef Watch* watches = <Watch*>realloc(loop.watches, <size_t>capacity * sizeof(Watch))
    if watches == NULL:
        return False
    memset(watches + loop.capacity, 0, <size_t>(capacity - loop.capacity) * sizeof(Watch))
    loop.watches = watches
    loop.capacity = capacity
    return True


cdef int32_t control(int operation, int fd, int32_t events) noexcept nogil:
    cdef epoll_event event
    memset(&event, 0, sizeof(event))
    event.events = <uint32_t>(events & EVENT_BITS)
    event.data.u64 = <uint64_t>here().watches[fd].generation << 32 | <uint32_t>fd
    return -errno if epoll_ctl(here().epoll, operation, fd, &event) else 0


# The loop

cdef int turn(Loop* loop) noexcept nogil:
    """Run until ``stop`` (return 0), an exception waits (1), or epoll fails (-errno)."""
    cdef epoll_event events[EVENTS_AT_ONCE]
    cdef int count, i, timeout
    while True:
        run_jobs(loop)
        timeout = -1
        if loop.job_count:
            timeout = 0
        elif loop.strangers:
            timeout = STRANGER_CHECK_MS
        count = epoll_wait(loop.epoll, events, EVENTS_AT_ONCE, timeout)
        if count < 0 and errno != EINTR:
            return -errno
        for i in range(count):
            if events[i].data.u64 >> 32 == STOP:
                return 0
            handle(loop, &events[i])
            if loop.must_return:  # epoll tells the other events again
                return 1
        if loop.strangers:
            dismiss_strangers(loop, now_ms(), MOST_STRANGERS)


cdef void handle(Loop* loop, epoll_event* event) noexcept nogil:
    """Let libqb take one event, unless what it was meant for is gone."""
    cdef uint32_t generation = <uint32_t>(event.data.u64 >> 32)
    cdef int fd = <int>(event.data.u64 & 0x7FFFFFFF)
    cdef Watch watch = loop.watches[fd]
    cdef uint64_t messages = loop.messages
    if watch.generation != generation:
        return
    # During authentication the descriptor is deleted and added again, which returns +1.
    cdef int32_t result = watch.call(fd, <int32_t>event.events, watch.data)
    if result < 0 and loop.watches[fd].generation == generation:
        on_dispatch_del(fd)
    disconnect_doomed(loop)
    if watch.is_client and loop.watches[fd].generation == generation:
        count_empty(&loop.watches[fd], loop.messages == messages)


cdef void count_empty(Watch* watch, bint is_empty) noexcept nogil:
    """Disconnect a client that announces messages and sends none: libqb waits for each 10 ms."""
    if not is_empty:
        watch.empty = 0
        return
    watch.empty += 1
    if watch.empty > MOST_EMPTY:
        qb_ipcs_disconnect(<qb_ipcs_connection_t*>watch.data)


cdef void run_jobs(Loop* loop) noexcept nogil:
    """Run the jobs that are queued now; they may queue others."""
    cdef Job* jobs = loop.jobs
    cdef size_t count = loop.job_count, i
    loop.jobs = NULL
    loop.job_count = 0
    for i in range(count):
        jobs[i].call(jobs[i].data)
    free(jobs)


cdef void dismiss_strangers(Loop* loop, int64_t now, int most) noexcept nogil:
    """Hang up on who did not say in time who it is, and on the oldest if they are too many."""
    cdef int fd, oldest
    cdef Watch* watch
    while True:
        oldest = -1
        for fd in range(loop.capacity):
            watch = &loop.watches[fd]
            if watch.generation != FREE and watch.expires_ms and (
                    oldest < 0 or watch.expires_ms < loop.watches[oldest].expires_ms):
                oldest = fd
        if oldest < 0 or (loop.strangers <= most and loop.watches[oldest].expires_ms > now):
            return
        hang_up(loop, oldest)


cdef void hang_up(Loop* loop, int fd) noexcept nogil:
    """Tell libqb that the peer is gone, which lets it free and close what it has of it."""
    cdef Watch watch = loop.watches[fd]
    watch.call(fd, POLLHUP, watch.data)
    if loop.watches[fd].generation == watch.generation:
        on_dispatch_del(fd)


cdef void disconnect_doomed(Loop* loop) noexcept nogil:
    """Disconnect a client as its callback asked; inside it libqb would use what it has freed."""
    cdef qb_ipcs_connection_t* doomed = loop.doomed
    if doomed != NULL:
        loop.doomed = NULL
        qb_ipcs_disconnect(doomed)
        qb_ipcs_connection_unref(doomed)


# What libqb tells of connections

cdef int32_t on_accept(qb_ipcs_connection_t* c, uid_t uid, gid_t gid) noexcept nogil:
    cdef qb_ipcs_connection_stats stats
    if here().connections >= (MOST_CONNECTIONS if uid == 0 else MOST_CONNECTIONS - KEPT_FOR_ROOT):
        return -EMFILE
    if qb_ipcs_connection_get_buffer_size(c) > LARGEST_BUFFER:
        return -EFBIG
    cdef int32_t result = qb_ipcs_connection_stats_get(c, &stats, 0)
    if result == 0:
        result = admit(c, uid, gid, stats.client_pid)
    if result == 0:
        here().admitted = c
        here().connections += 1
    return result


cdef int32_t admit(qb_ipcs_connection_t* c, uid_t uid, gid_t gid, int32_t pid) noexcept with gil:
    """Ask Python who this is; keep what it says with the connection."""
    cdef Server self = <Server>here().server
    try:
        caller = self._admit(uid, gid, pid)
        if isinstance(caller, int):
            return -<int32_t>caller
        Py_INCREF(caller)  # on_destroyed gives it back
        qb_ipcs_context_set(c, <void*>caller)
        return 0
    except BaseException as error:
        self._raised = error
        here().must_return = True
        return -EIO


cdef int32_t on_closed(qb_ipcs_connection_t* c) noexcept nogil:
    return 0


cdef void on_destroyed(qb_ipcs_connection_t* c) noexcept nogil:
    cdef void* caller = qb_ipcs_context_get(c)
    if here().admitted == c:
        here().admitted = NULL
    if caller != NULL:  # else it was refused
        qb_ipcs_context_set(c, NULL)
        here().connections -= 1
        here().closed += 1
        if here().closed % CLOSED_BEFORE_TRIM == 0:
            malloc_trim(0)
        release(<PyObject*>caller)


cdef void release(PyObject* owned) noexcept with gil:
    Py_DECREF(<object>owned)


cdef size_t size_in_ring(const char* message) noexcept nogil:
    """Return how many bytes a client has sent, or SIZE_MAX where that can't be told.

    libqb only passes on what the client claims. But in its ring two words stand before a message:
    its size, and a mark. Around the end of the ring, which is one of a page, they are elsewhere.
    """
    cdef uint32_t words[2]
    if <uintptr_t>message % SMALLEST_PAGE < sizeof(words):
        return SIZE_MAX
    memcpy(words, message - sizeof(words), sizeof(words))
    return words[0] if words[1] == CHUNK_MARK else SIZE_MAX


cdef int32_t on_message(qb_ipcs_connection_t* c, void* data, size_t size) noexcept nogil:
    """Answer one request. *data* is memory of the client's, *size* what it claims."""
    cdef qb_ipc_request_header request
    cdef qb_ipc_response_header response
    cdef iovec parts[2]
    cdef const char* body = NULL
    cdef size_t length = 0
    cdef size_t limit = <size_t>qb_ipcs_connection_get_buffer_size(c)
    here().messages += 1
    if here().doomed != NULL:
        return ONE_AT_A_TIME
    memcpy(&request, data, sizeof(request))
    memset(&response, 0, sizeof(response))
    response.id = request.id
    response.error = -EINVAL
    if sizeof(request) <= size <= limit and size <= size_in_ring(<char*>data):
        response.error = ask(c, request.id, <char*>data + sizeof(request), size - sizeof(request),
                             &body, &length)
    if length > limit - sizeof(response):
        response.error, length = -EFBIG, 0
    response.size = <int32_t>(sizeof(response) + length)
    parts[0].iov_base, parts[0].iov_len = &response, sizeof(response)
    parts[1].iov_base, parts[1].iov_len = <void*>body, length
    if qb_ipcs_response_sendv(c, parts, 2 if length else 1) < 0:
        qb_ipcs_connection_ref(c)  # it does not take its answers
        here().doomed = c
    return ONE_AT_A_TIME


cdef int32_t ask(qb_ipcs_connection_t* c, int32_t id, const char* payload, size_t size,
                 const char** body, size_t* length) noexcept with gil:
    """Let Python answer; return 0 or a negative errno. *body* is valid until the next call."""
    cdef Server self = <Server>here().server
    try:
        answer = self._answer(
            <object>qb_ipcs_context_get(c), id,
            PyBytes_FromStringAndSize(payload, <Py_ssize_t>size))
        if isinstance(answer, int):
            return -<int32_t>answer
        self._sent = answer  # so that it stays while it is sent without the GIL
        body[0] = PyBytes_AS_STRING(self._sent)
        length[0] = <size_t>PyBytes_GET_SIZE(self._sent)
        return 0
    except BaseException as error:
        self._raised = error
        here().must_return = True
        return -EIO


cdef qb_ipcs_service_handlers HANDLERS
HANDLERS.connection_accept = on_accept
HANDLERS.connection_created = NULL
HANDLERS.msg_process = on_message
HANDLERS.connection_closed = on_closed
HANDLERS.connection_destroyed = on_destroyed

cdef qb_ipcs_poll_handlers POLL_HANDLERS
POLL_HANDLERS.job_add = on_job_add
POLL_HANDLERS.dispatch_add = on_dispatch_add
POLL_HANDLERS.dispatch_mod = on_dispatch_mod
POLL_HANDLERS.dispatch_del = on_dispatch_del


cdef class Server:
    """A libqb service *name* over shared memory.

    *admit* gets uid, gid and pid of who connects and returns an object that stands for it, or the
    errno that it is refused with. *answer* gets that object, the request's number and its content,
    and returns the answer's content, or an errno.
    """

    cdef Loop _loop
    cdef object _admit
    cdef object _answer
    cdef bytes _sent
    cdef object _raised

    def __cinit__(self, str name not None, *, admit, answer):
        memset(&self._loop, 0, sizeof(Loop))
        self._loop.server = <PyObject*>self
        self._loop.epoll = self._loop.wake = -1
        self._admit = admit
        self._answer = answer
        self._sent = b""
        self._loop.epoll = epoll_create1(EPOLL_CLOEXEC)
        self._loop.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self._loop.epoll < 0 or self._loop.wake < 0:
            raise failure("epoll", errno)
        self._watch_for_stop()
        self._listen(name.encode())

    cdef int _watch_for_stop(self) except -1:
        cdef epoll_event event
        memset(&event, 0, sizeof(event))
        event.events = POLLIN
        event.data.u64 = <uint64_t>STOP << 32
        if epoll_ctl(self._loop.epoll, EPOLL_CTL_ADD, self._loop.wake, &event):
            raise failure("epoll_ctl", errno)
        return 0

    cdef int _listen(self, bytes name) except -1:
        global current
        cdef void* outer = current
        cdef int32_t result
        current = &self._loop
        self._loop.service = qb_ipcs_create(name, 0, QB_IPC_SHM, &HANDLERS)
        result = -ENOMEM
        if self._loop.service != NULL:
            qb_ipcs_poll_handlers_set(self._loop.service, &POLL_HANDLERS)
            result = qb_ipcs_run(self._loop.service)
        current = outer
        if result < 0:
            self._loop.service = NULL  # qb_ipcs_run has destroyed it
            raise failure(f"listen on {name.decode()}", -result)
        return 0

    def run(self):
        """Serve until ``stop``, then disconnect everybody; blocks. Raises what a function raised.

        After an exception it can be called again, and nobody is disconnected.
        """
        global current
        cdef Loop* loop = &self._loop
        cdef void* outer = current
        cdef int result
        if loop.service == NULL:
            raise ValueError("the server is closed")
        loop.must_return = False
        with nogil:
            current = loop
            result = turn(loop)
            if result <= 0:
                shut_down(loop)
            current = outer
        if result < 0:
            raise failure("epoll_wait", -result)
        if self._raised is not None:
            raised, self._raised = self._raised, None
            raise raised

    def stop(self):
        """Let ``run`` return, now or when it is called; for any thread."""
        if self._loop.wake >= 0:
            eventfd_write(self._loop.wake, 1)

    def close(self):
        """Free everything. Only while no thread is in ``run``."""
        self._close()

    @property
    def connections(self):
        """How many clients are connected."""
        return self._loop.connections

    cdef int _close(self) except -1:
        global current
        cdef void* outer = current
        if self._loop.service != NULL:
            current = &self._loop
            with nogil:
                shut_down(&self._loop)
            current = outer
        close_descriptor(&self._loop.epoll)
        close_descriptor(&self._loop.wake)
        free(self._loop.watches)
        free(self._loop.jobs)
        self._loop.watches, self._loop.capacity = NULL, 0
        self._loop.jobs, self._loop.job_count = NULL, 0
        return 0

    def __dealloc__(self):
        # A service that runs is left as it is: ending it calls Python. Whoever has a server
        # closes it; all that a forgotten one costs is what the process's end frees.
        if self._loop.service == NULL:
            close_descriptor(&self._loop.epoll)
            close_descriptor(&self._loop.wake)
            free(self._loop.watches)
            free(self._loop.jobs)


cdef extern from "<unistd.h>" nogil:
    int close(int fd)


cdef void close_descriptor(int* fd) noexcept nogil:
    if fd[0] >= 0:
        close(fd[0])
        fd[0] = -1


cdef void shut_down(Loop* loop) noexcept nogil:
    """Disconnect everybody and stop listening."""
    dismiss_strangers(loop, now_ms(), -1)
    qb_ipcs_destroy(loop.service)
    while loop.job_count:
        run_jobs(loop)
    loop.service = NULL
