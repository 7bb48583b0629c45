# cython: language_level=3
"""Declarations of libquorum, libcmap and libcfg: corosync/quorum.h, cmap.h and cfg.h."""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from pmxcfs._cserror cimport cs_dispatch_flags_t, cs_error_t

cdef extern from "<corosync/quorum.h>" nogil:
    ctypedef uint64_t quorum_handle_t

    ctypedef enum quorum_model_t:
        QUORUM_MODEL_V0

    ctypedef void (*quorum_notification_fn_t)(
        quorum_handle_t handle, uint32_t quorate, uint64_t ring, uint32_t count,
        uint32_t *members) noexcept

    ctypedef struct quorum_model_data_t:
        quorum_model_t model

    ctypedef struct quorum_model_v0_data_t:
        quorum_model_t model
        quorum_notification_fn_t quorum_notify_fn

    cs_error_t quorum_model_initialize(
        quorum_handle_t *handle, quorum_model_t model, quorum_model_data_t *model_data,
        uint32_t *quorum_type, void *context)
    cs_error_t quorum_finalize(quorum_handle_t handle)
    cs_error_t quorum_fd_get(quorum_handle_t handle, int *fd)
    cs_error_t quorum_dispatch(quorum_handle_t handle, cs_dispatch_flags_t dispatch_types)
    cs_error_t quorum_trackstart(quorum_handle_t handle, unsigned int flags)
    cs_error_t quorum_context_get(quorum_handle_t handle, const void **context)

cdef extern from "<corosync/cmap.h>" nogil:
    ctypedef uint64_t cmap_handle_t
    ctypedef uint64_t cmap_iter_handle_t
    ctypedef uint64_t cmap_track_handle_t

    enum:
        CMAP_KEYNAME_MAXLEN
        CMAP_TRACK_ADD
        CMAP_TRACK_DELETE
        CMAP_TRACK_MODIFY
        CMAP_TRACK_PREFIX

    ctypedef enum cmap_value_types_t:
        CMAP_VALUETYPE_UINT8
        CMAP_VALUETYPE_UINT16
        CMAP_VALUETYPE_UINT32
        CMAP_VALUETYPE_UINT64
        CMAP_VALUETYPE_STRING

    struct cmap_notify_value:
        pass

    ctypedef void (*cmap_notify_fn_t)(
        cmap_handle_t handle, cmap_track_handle_t track, int32_t event, const char *key,
        cmap_notify_value new_value, cmap_notify_value old_value, void *user_data) noexcept

    cs_error_t cmap_initialize(cmap_handle_t *handle)
    cs_error_t cmap_finalize(cmap_handle_t handle)
    cs_error_t cmap_fd_get(cmap_handle_t handle, int *fd)
    cs_error_t cmap_dispatch(cmap_handle_t handle, cs_dispatch_flags_t dispatch_types)
    cs_error_t cmap_get(
        cmap_handle_t handle, const char *key, void *value, size_t *size,
        cmap_value_types_t *value_type)
    cs_error_t cmap_get_string(cmap_handle_t handle, const char *key, char **value)
    cs_error_t cmap_iter_init(
        cmap_handle_t handle, const char *prefix, cmap_iter_handle_t *iterator)
    cs_error_t cmap_iter_next(
        cmap_handle_t handle, cmap_iter_handle_t iterator, char *key, size_t *size,
        cmap_value_types_t *value_type)
    cs_error_t cmap_iter_finalize(cmap_handle_t handle, cmap_iter_handle_t iterator)
    cs_error_t cmap_track_add(
        cmap_handle_t handle, const char *key, int32_t track_type, cmap_notify_fn_t notify,
        void *user_data, cmap_track_handle_t *track)

cdef extern from "<corosync/cfg.h>" nogil:
    ctypedef uint64_t corosync_cfg_handle_t

    ctypedef struct corosync_cfg_callbacks_t:
        pass

    cs_error_t corosync_cfg_initialize(
        corosync_cfg_handle_t *handle, const corosync_cfg_callbacks_t *callbacks)
    cs_error_t corosync_cfg_finalize(corosync_cfg_handle_t handle)
    cs_error_t corosync_cfg_reload_config(corosync_cfg_handle_t handle)
