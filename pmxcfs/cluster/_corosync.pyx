# cython: language_level=3, auto_pickle=False, autotestdict=False
"""Bindings of libquorum, libcmap and libcfg: quorum, configuration, and reloads of corosync.conf.

An object is not thread-safe: only one thread at a time may use it. All calls but ``dispatch_one``
and ``fileno`` block for as long as corosync is stopped; they release the GIL. Methods raise
ClusterError or a subclass of it, and ValueError if the object is not connected.

Contract: docs/spec/cluster.md, "Quorum and configuration".
"""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

from pmxcfs._cserror cimport (
    CS_DISPATCH_ONE_NONBLOCKING, CS_ERR_NO_SECTIONS, CS_ERR_NOT_EXIST, CS_OK, CS_TRACK_CHANGES,
    CS_TRACK_CURRENT, after_dispatch, check, cs_error_t,
)

from pmxcfs.text import to_text


cdef class _Connection:
    """The base of the connections. An object connects once and can't be used after ``close``."""

    cdef uint64_t _handle
    cdef int _fd  # owned by the library
    cdef bint _is_connected
    cdef bint _is_closed
    cdef bint _was_called  # whether the library called back in this dispatch

    def fileno(self):
        """Return the descriptor that is readable when an event is pending."""
        self._ensure_connected()
        return self._fd

    def close(self):
        """Close the connection; may be called again."""
        self._is_closed = True
        self._finalize()

    cdef int _ensure_new(self) except -1:
        if self._is_connected or self._is_closed:
            raise ValueError("already connected or closed")
        return 0

    cdef int _ensure_connected(self) except -1:
        if not self._is_connected:
            raise ValueError("closed" if self._is_closed else "not connected")
        return 0

    cdef void _finalize(self) noexcept:
        self._is_connected = False


cdef class Quorum(_Connection):
    """A connection to libquorum, for whether this node has quorum."""

    cdef readonly bint is_quorate  # as of the last dispatch

    def __dealloc__(self):
        self._finalize()

    def connect(self):
        """Connect and request an event for the present state and for each change of it."""
        cdef quorum_model_v0_data_t model
        cdef quorum_handle_t handle = 0
        cdef uint32_t provider = 0
        cdef cs_error_t status
        cdef void *context = <void *>self  # borrowed: the object outlives its handle
        self._ensure_new()
        memset(&model, 0, sizeof(model))
        model.model = QUORUM_MODEL_V0
        model.quorum_notify_fn = on_quorum
        with nogil:
            status = quorum_model_initialize(
                &handle, QUORUM_MODEL_V0, <quorum_model_data_t *>&model, &provider, context)
        check(status, "quorum_initialize")
        self._handle = handle
        self._is_connected = True
        check(quorum_fd_get(handle, &self._fd), "quorum_fd_get")
        with nogil:
            status = quorum_trackstart(handle, CS_TRACK_CURRENT | CS_TRACK_CHANGES)
        check(status, "quorum_trackstart")

    def dispatch_one(self):
        """Dispatch one event; return False if none is pending. Does not block."""
        cdef cs_error_t status
        self._ensure_connected()
        self._was_called = False
        with nogil:
            status = quorum_dispatch(self._handle, CS_DISPATCH_ONE_NONBLOCKING)
        return after_dispatch(status, "quorum_dispatch", self._fd, self._was_called) != 0

    cdef void _finalize(self) noexcept:
        if self._is_connected:
            self._is_connected = False
            with nogil:
                quorum_finalize(self._handle)  # the handle is invalid after an error, too


cdef class Cmap(_Connection):
    """A connection to cmap, corosync's configuration: dotted keys with numbers and strings."""

    def __dealloc__(self):
        self._finalize()

    def connect(self):
        """Connect to corosync."""
        cdef cmap_handle_t handle = 0
        cdef cs_error_t status
        self._ensure_new()
        with nogil:
            status = cmap_initialize(&handle)
        check(status, "cmap_initialize")
        self._handle = handle
        self._is_connected = True
        check(cmap_fd_get(handle, &self._fd), "cmap_fd_get")

    def track(self, str prefix not None):
        """Request an event for every change of a key that begins with *prefix*."""
        cdef cmap_track_handle_t track = 0
        cdef cs_error_t status
        cdef int32_t kinds = (
            CMAP_TRACK_ADD | CMAP_TRACK_DELETE | CMAP_TRACK_MODIFY | CMAP_TRACK_PREFIX)
        cdef bytes raw = prefix.encode("ascii")
        cdef const char *key = raw
        cdef void *owner = <void *>self  # borrowed: the object outlives its handle
        self._ensure_connected()
        with nogil:
            status = cmap_track_add(self._handle, key, kinds, on_change, owner, &track)
        check(status, "cmap_track_add")

    def keys(self, str prefix not None):
        """Return the keys that begin with *prefix*."""
        cdef cmap_iter_handle_t iterator = 0
        cdef cs_error_t status
        cdef bytes raw = prefix.encode("ascii")
        cdef const char *start = raw
        self._ensure_connected()
        with nogil:
            status = cmap_iter_init(self._handle, start, &iterator)
        check(status, "cmap_iter_init")
        try:
            return self._iterate(iterator)
        finally:
            with nogil:
                cmap_iter_finalize(self._handle, iterator)

    def get(self, str key not None):
        """Return the key's string or unsigned number; None if it is absent or of another type."""
        cdef uint64_t value = 0  # the widest number
        cdef size_t size = sizeof(value)
        cdef cmap_value_types_t kind = CMAP_VALUETYPE_STRING
        cdef cs_error_t status
        cdef bytes raw = key.encode("ascii")
        cdef const char *name = raw
        self._ensure_connected()
        with nogil:
            status = cmap_get(self._handle, name, NULL, &size, &kind)
            if status == CS_OK and kind != CMAP_VALUETYPE_STRING:
                size = sizeof(value)
                status = cmap_get(self._handle, name, &value, &size, &kind)
        if status == CS_ERR_NOT_EXIST:
            return None
        check(status, "cmap_get")
        return self._string(name) if kind == CMAP_VALUETYPE_STRING else as_number(&value, kind)

    def dispatch_one(self):
        """Dispatch one event; return False if none is pending. Does not block."""
        cdef cs_error_t status
        self._ensure_connected()
        self._was_called = False
        with nogil:
            status = cmap_dispatch(self._handle, CS_DISPATCH_ONE_NONBLOCKING)
        return after_dispatch(status, "cmap_dispatch", self._fd, self._was_called) != 0

    cdef list _iterate(self, cmap_iter_handle_t iterator):
        cdef char[CMAP_KEYNAME_MAXLEN + 1] key
        cdef size_t size = 0
        cdef cmap_value_types_t kind = CMAP_VALUETYPE_STRING
        cdef cs_error_t status
        found = []
        while True:
            with nogil:
                status = cmap_iter_next(self._handle, iterator, key, &size, &kind)
            if status == CS_ERR_NO_SECTIONS:
                return found
            check(status, "cmap_iter_next")
            found.append(text_of(key))

    cdef object _string(self, const char *name):
        cdef char *value = NULL  # from the library's malloc, freed below
        cdef cs_error_t status
        with nogil:
            status = cmap_get_string(self._handle, name, &value)
        if status == CS_ERR_NOT_EXIST:  # deleted after its type was read
            return None
        check(status, "cmap_get_string")
        try:
            return text_of(value)
        finally:
            free(value)

    cdef void _finalize(self) noexcept:
        if self._is_connected:
            self._is_connected = False
            with nogil:
                cmap_finalize(self._handle)  # the handle is invalid after an error, too


cdef str text_of(const char *value):
    cdef bytes raw = value
    return to_text(raw)


cdef object as_number(const void *value, cmap_value_types_t kind):
    """Return the unsigned number at *value*, in host byte order; None for another *kind*."""
    if kind == CMAP_VALUETYPE_UINT8:
        return (<const uint8_t *>value)[0]
    if kind == CMAP_VALUETYPE_UINT16:
        return (<const uint16_t *>value)[0]
    if kind == CMAP_VALUETYPE_UINT32:
        return (<const uint32_t *>value)[0]
    return (<const uint64_t *>value)[0] if kind == CMAP_VALUETYPE_UINT64 else None


def reload_configuration():
    """Have corosync reload corosync.conf on all nodes. Blocks; raises ClusterError."""
    cdef corosync_cfg_handle_t handle = 0
    cdef cs_error_t status
    with nogil:
        status = corosync_cfg_initialize(&handle, NULL)
    check(status, "corosync_cfg_initialize")
    try:
        with nogil:
            status = corosync_cfg_reload_config(handle)
        check(status, "corosync_cfg_reload_config")
    finally:
        with nogil:
            corosync_cfg_finalize(handle)


cdef void on_quorum(quorum_handle_t handle, uint32_t quorate, uint64_t ring, uint32_t count,
                    uint32_t *members) noexcept with gil:
    cdef const void *context = NULL
    if quorum_context_get(handle, &context) == CS_OK and context != NULL:
        (<Quorum>context)._was_called = True
        (<Quorum>context).is_quorate = quorate != 0


cdef void on_change(cmap_handle_t handle, cmap_track_handle_t track, int32_t event,
                    const char *key, cmap_notify_value new_value, cmap_notify_value old_value,
                    void *user_data) noexcept with gil:
    (<Cmap>user_data)._was_called = True
