# cython: language_level=3, auto_pickle=False, autotestdict=False
"""A libqb IPC server for local clients, on an epoll loop that another thread can stop.

Knows nothing of what requests mean: the function *admit* decides which processes may connect, and
the function *answer* turns a request into an answer. libqb's own loop is not used, because no other
thread can stop it. Memory that a client can write is not trusted: sizes are checked, and a request
is copied before it is parsed.

Threads: one thread calls ``run``, and makes all calls of libqb and gets all its callbacks, as libqb
has no locks. It holds the GIL only while *admit* or *answer* runs. Any thread may call ``stop``.
Exceptions never cross a frame of C: a callback stores its exception, ``run`` raises it and can be
called again. Contract: docs/spec/ipc.md, "Robustness".
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.errno cimport EFBIG, EINTR, EINVAL, EIO, EMFILE, ENOMEM, errno
from libc.stdint cimport SIZE_MAX, int32_t, int64_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from pmxcfs.host.looking cimport Looking, look_again, note_answer, note_arrival

import os

from pmxcfs.errors import IpcError

cdef extern from *:
    """
    /* The loop that this thread runs: libqb passes no context to its poll handlers. */
    static _Thread_local void *pmxcfs_current_loop;
    """
    void* current "pmxcfs_current_loop"

# The result of msg_process that means "back off". With any other result, libqb takes the next
# message from the ring, and then waits until the client has announced all of them: maybe forever.
cdef enum:
    ONE_AT_A_TIME = -1

cdef enum:
    EVENTS_AT_ONCE = 64
    STOP = 0  # the generation of the eventfd that stops the loop
    FREE = 0  # the generation of a descriptor without a watch
    MAX_CONNECTIONS = 512  # each has about 3 MiB of shared memory and a descriptor
    RESERVED_FOR_ROOT = 64  # connections that other users can't take from the system's tools
    MAX_HANDSHAKES = 64  # peers that have connected and not yet authenticated
    HANDSHAKE_TIMEOUT_MS = 2000  # from connecting to authentication
    HANDSHAKE_CHECK_MS = 500  # between two checks for handshakes that have timed out
    MAX_BUFFER = 8 << 20  # bytes of a message buffer that a client may ask for
    # Closed connections between two trims of malloc's heap, which holds a buffer per connection.
    CLOSED_BEFORE_TRIM = 64
    MAX_EMPTY = 3  # announcements without a message, one after the other, before disconnecting
    SMALLEST_PAGE = 4096
    EVENT_BITS = POLLIN | POLLPRI | POLLOUT  # the same numbers for poll and epoll

cdef uint32_t CHUNK_MARK = 0xA1A1A1A1  # libqb's ring has it before each message


cdef object failure(str call, int code):
    return IpcError(f"{call}: {os.strerror(code)}", code)


cdef struct Watch:
    uint32_t generation  # tells apart descriptors that have the same number, one after the other
    qb_ipcs_dispatch_fn_t call
    void* data
    int64_t expires_ms  # monotonic; the end of a handshake's time; 0: no handshake
    bint is_client  # data is the connection of an admitted client
    int empty  # announcements without a message, one after the other


cdef struct Job:
    qb_loop_job_dispatch_fn call
    void* data


cdef struct Loop:
    PyObject* server  # borrowed from the Server that contains this loop
    qb_ipcs_service_t* service
    int epoll
    int wake  # an eventfd that ``stop`` writes to
    uint32_t generation
    Watch* watches  # indexed by descriptor
    int capacity
    int handshakes  # watches of peers that have not authenticated
    Job* jobs
    size_t job_count
    qb_ipcs_connection_t* admitted  # during accept: the next descriptor belongs to it
    qb_ipcs_connection_t* to_disconnect  # a reference; to be disconnected after the callback
    int connections
    unsigned int closed  # number of connections closed so far
    uint64_t messages  # number of messages received so far
    Looking looking
    bint must_return  # a callback has stored an exception, which ``run`` must raise


cdef inline Loop* here() noexcept nogil:
    """Return the loop that this thread runs."""
    return <Loop*>current


# The poll handlers, by which libqb uses the loop

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
        here().handshakes += 1
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
        here().handshakes -= 1
    here().watches[fd].generation = FREE
    return control(EPOLL_CTL_DEL, fd, 0)


cdef bint make_room(Loop* loop, int fd) noexcept nogil:
    """Grow the table of watches to contain *fd*; return False without memory."""
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

cdef int run_loop(Loop* loop) noexcept nogil:
    """Run until ``stop`` (return 0), a stored exception (1), or a failure of epoll (-errno)."""
    cdef epoll_event events[EVENTS_AT_ONCE]
    cdef int count, i, timeout
    while True:
        run_jobs(loop)
        timeout = -1
        if loop.job_count:
            timeout = 0
        elif loop.handshakes:
            timeout = HANDSHAKE_CHECK_MS
        count = await_events(loop, events, timeout)
        if count < 0 and errno != EINTR:
            return -errno
        for i in range(count):
            if events[i].data.u64 >> 32 == STOP:
                return 0
            handle(loop, &events[i])
            note_answer(&loop.looking)
            if loop.must_return:  # level-triggered: epoll reports the other events again
                return 1
        if loop.handshakes:
            end_handshakes(loop, now_ms(), MAX_HANDSHAKES)


cdef int await_events(Loop* loop, epoll_event* events, int timeout) noexcept nogil:
    """Return the number of events that have come, after a look or a sleep of up to *timeout* ms."""
    cdef int count = epoll_wait(loop.epoll, events, EVENTS_AT_ONCE, 0)
    while count == 0 and timeout != 0 and look_again(&loop.looking):
        count = epoll_wait(loop.epoll, events, EVENTS_AT_ONCE, 0)
    if count == 0 and timeout != 0:
        count = epoll_wait(loop.epoll, events, EVENTS_AT_ONCE, timeout)
    if count > 0:
        note_arrival(&loop.looking)
    return count


cdef void handle(Loop* loop, epoll_event* event) noexcept nogil:
    """Pass one event to libqb, unless the watch of the event is gone."""
    cdef uint32_t generation = <uint32_t>(event.data.u64 >> 32)
    cdef int fd = <int>(event.data.u64 & 0x7FFFFFFF)
    cdef Watch watch = loop.watches[fd]
    cdef uint64_t messages = loop.messages
    if watch.generation != generation:
        return
    # During authentication libqb deletes the descriptor, adds it again, and returns +1.
    cdef int32_t result = watch.call(fd, <int32_t>event.events, watch.data)
    if result < 0 and loop.watches[fd].generation == generation:
        on_dispatch_del(fd)
    disconnect_marked(loop)
    if watch.is_client and loop.watches[fd].generation == generation:
        count_empty(&loop.watches[fd], loop.messages == messages)


cdef void count_empty(Watch* watch, bint is_empty) noexcept nogil:
    """Disconnect a client that announces messages and sends none.

    libqb waits 10 ms for each announced message, and other clients wait with it.
    """
    if not is_empty:
        watch.empty = 0
        return
    watch.empty += 1
    if watch.empty > MAX_EMPTY:
        qb_ipcs_disconnect(<qb_ipcs_connection_t*>watch.data)


cdef void run_jobs(Loop* loop) noexcept nogil:
    """Run the jobs in the queue. Jobs that they add run in the next call."""
    cdef Job* jobs = loop.jobs
    cdef size_t count = loop.job_count, i
    loop.jobs = NULL
    loop.job_count = 0
    for i in range(count):
        jobs[i].call(jobs[i].data)
    free(jobs)


cdef void end_handshakes(Loop* loop, int64_t now, int most) noexcept nogil:
    """Disconnect peers whose handshake has timed out, and the oldest while over *most* are left."""
    cdef int fd, oldest
    cdef Watch* watch
    while True:
        oldest = -1
        for fd in range(loop.capacity):
            watch = &loop.watches[fd]
            if watch.generation != FREE and watch.expires_ms and (
                    oldest < 0 or watch.expires_ms < loop.watches[oldest].expires_ms):
                oldest = fd
        if oldest < 0 or (loop.handshakes <= most and loop.watches[oldest].expires_ms > now):
            return
        hang_up(loop, oldest)


cdef void hang_up(Loop* loop, int fd) noexcept nogil:
    """Tell libqb that the peer is gone: libqb then frees and closes what belongs to the peer."""
    cdef Watch watch = loop.watches[fd]
    watch.call(fd, POLLHUP, watch.data)
    if loop.watches[fd].generation == watch.generation:
        on_dispatch_del(fd)


cdef void disconnect_marked(Loop* loop) noexcept nogil:
    """Disconnect the client that a callback has marked.

    Not inside the callback: libqb would go on to use the connection that it has freed.
    """
    cdef qb_ipcs_connection_t* to_disconnect = loop.to_disconnect
    if to_disconnect != NULL:
        loop.to_disconnect = NULL
        qb_ipcs_disconnect(to_disconnect)
        qb_ipcs_connection_unref(to_disconnect)


# The service handlers, by which libqb reports connections and messages

cdef int32_t on_accept(qb_ipcs_connection_t* c, uid_t uid, gid_t gid) noexcept nogil:
    cdef qb_ipcs_connection_stats stats
    if here().connections >= (MAX_CONNECTIONS if uid == 0 else MAX_CONNECTIONS - RESERVED_FOR_ROOT):
        return -EMFILE
    if qb_ipcs_connection_get_buffer_size(c) > MAX_BUFFER:
        return -EFBIG
    cdef int32_t result = qb_ipcs_connection_stats_get(c, &stats, 0)
    if result == 0:
        result = admit(c, uid, gid, stats.client_pid)
    if result == 0:
        here().admitted = c
        here().connections += 1
    return result


cdef int32_t admit(qb_ipcs_connection_t* c, uid_t uid, gid_t gid, int32_t pid) noexcept with gil:
    """Call *admit*; store the object that it returns as the connection's context."""
    cdef Server self = <Server>here().server
    try:
        caller = self._admit(uid, gid, pid)
        if isinstance(caller, int):
            return -<int32_t>caller
        Py_INCREF(caller)  # on_destroyed releases this reference
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
    if caller != NULL:  # NULL: the connection was refused
        qb_ipcs_context_set(c, NULL)
        here().connections -= 1
        here().closed += 1
        if here().closed % CLOSED_BEFORE_TRIM == 0:
            malloc_trim(0)
        release(<PyObject*>caller)


cdef void release(PyObject* owned) noexcept with gil:
    Py_DECREF(<object>owned)


cdef size_t size_in_ring(const char* message) noexcept nogil:
    """Return the size of a message in bytes as the ring has it, SIZE_MAX if that can't be told.

    libqb passes on the size that the client claims. Its ring has two words before each message:
    the size and a mark. They are elsewhere if the message begins at the start of the ring, which
    is the start of a page.
    """
    cdef uint32_t words[2]
    if <uintptr_t>message % SMALLEST_PAGE < sizeof(words):
        return SIZE_MAX
    memcpy(words, message - sizeof(words), sizeof(words))
    return words[0] if words[1] == CHUNK_MARK else SIZE_MAX


cdef int32_t on_message(qb_ipcs_connection_t* c, void* data, size_t size) noexcept nogil:
    """Answer one request. The client can still write to *data*; *size* is the client's claim."""
    cdef qb_ipc_request_header request
    cdef qb_ipc_response_header response
    cdef iovec parts[2]
    cdef const char* body = NULL
    cdef size_t length = 0
    cdef size_t limit = <size_t>qb_ipcs_connection_get_buffer_size(c)
    here().messages += 1
    if here().to_disconnect != NULL:
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
        qb_ipcs_connection_ref(c)  # the client does not read its answers: disconnect it
        here().to_disconnect = c
    return ONE_AT_A_TIME


cdef int32_t ask(qb_ipcs_connection_t* c, int32_t id, const char* payload, size_t size,
                 const char** body, size_t* length) noexcept with gil:
    """Call *answer*; return 0 or a negative errno. *body* is valid until the next call."""
    cdef Server self = <Server>here().server
    try:
        answer = self._answer(
            <object>qb_ipcs_context_get(c), id,
            PyBytes_FromStringAndSize(payload, <Py_ssize_t>size))
        if isinstance(answer, int):
            return -<int32_t>answer
        self._sent = answer  # keeps the bytes alive while they are sent without the GIL
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
    """The libqb service *name* over shared memory. Raises IpcError if it can't listen.

    *admit* gets uid, gid and pid of a connecting process. It returns an object that represents the
    client, or an errno to refuse it. *answer* gets that object, the request's number and content,
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
        self._loop.looking.is_allowed = len(os.sched_getaffinity(0)) > 1
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
            self._loop.service = NULL  # on failure qb_ipcs_run destroys the service
            raise failure(f"listen on {name.decode()}", -result)
        return 0

    def run(self):
        """Serve clients until ``stop``, then disconnect all of them. Blocks.

        Raises the exception that *admit* or *answer* raised. Clients then stay connected, and
        ``run`` can be called again. Raises IpcError if epoll fails, ValueError after ``close``.
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
            result = run_loop(loop)
            if result <= 0:
                shut_down(loop)
            current = outer
        if result < 0:
            raise failure("epoll_wait", -result)
        if self._raised is not None:
            raised, self._raised = self._raised, None
            raise raised

    def stop(self):
        """Make ``run`` return, now or when it is called. Any thread may call this."""
        if self._loop.wake >= 0:
            eventfd_write(self._loop.wake, 1)

    def close(self):
        """Disconnect all clients and free all resources. Only while no thread is in ``run``."""
        self._close()

    @property
    def connections(self):
        """The number of connected clients."""
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
        # A listening service is not destroyed here, as that calls Python. The owner must call
        # close(); a Server that was not closed keeps its memory until the process ends.
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
    """Disconnect all clients and stop listening."""
    end_handshakes(loop, now_ms(), -1)
    qb_ipcs_destroy(loop.service)
    while loop.job_count:
        run_jobs(loop)
    loop.service = NULL
