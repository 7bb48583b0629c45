# cython: language_level=3
"""Declarations of libcpg, corosync/cpg.h, and what other compiled modules call of ``_cpg``."""

from libc.stdint cimport uint32_t, uint64_t

from pmxcfs._cserror cimport cs_dispatch_flags_t, cs_error_t

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "<corosync/cpg.h>" nogil:
    ctypedef uint64_t cpg_handle_t

    enum:
        CPG_MAX_NAME_LENGTH

    ctypedef enum cpg_guarantee_t:
        CPG_TYPE_AGREED

    ctypedef enum cpg_model_t:
        CPG_MODEL_V1

    struct cpg_address:
        uint32_t nodeid
        uint32_t pid

    struct cpg_name:
        uint32_t length  # including the NUL
        char value[CPG_MAX_NAME_LENGTH]

    struct cpg_ring_id:
        pass

    ctypedef void (*cpg_deliver_fn_t)(
        cpg_handle_t handle, const cpg_name *group, uint32_t nodeid, uint32_t pid, void *msg,
        size_t msg_len) noexcept

    ctypedef void (*cpg_confchg_fn_t)(
        cpg_handle_t handle, const cpg_name *group,
        const cpg_address *members, size_t member_count,
        const cpg_address *left, size_t left_count,
        const cpg_address *joined, size_t joined_count) noexcept

    ctypedef void (*cpg_totem_confchg_fn_t)(
        cpg_handle_t handle, cpg_ring_id ring, uint32_t count, const uint32_t *members) noexcept

    ctypedef struct cpg_model_data_t:
        cpg_model_t model

    ctypedef struct cpg_model_v1_data_t:
        cpg_model_t model
        cpg_deliver_fn_t cpg_deliver_fn
        cpg_confchg_fn_t cpg_confchg_fn
        cpg_totem_confchg_fn_t cpg_totem_confchg_fn
        unsigned int flags

    cs_error_t cpg_model_initialize(
        cpg_handle_t *handle, cpg_model_t model, cpg_model_data_t *model_data, void *context)
    cs_error_t cpg_finalize(cpg_handle_t handle)
    cs_error_t cpg_fd_get(cpg_handle_t handle, int *fd)
    cs_error_t cpg_max_atomic_msgsize_get(cpg_handle_t handle, uint32_t *size)
    cs_error_t cpg_context_get(cpg_handle_t handle, void **context)
    cs_error_t cpg_dispatch(cpg_handle_t handle, cs_dispatch_flags_t dispatch_types)
    cs_error_t cpg_join(cpg_handle_t handle, const cpg_name *group)
    cs_error_t cpg_leave(cpg_handle_t handle, const cpg_name *group)
    cs_error_t cpg_mcast_joined(
        cpg_handle_t handle, cpg_guarantee_t guarantee, const iovec *iovec, unsigned int iov_len)
    cs_error_t cpg_local_get(cpg_handle_t handle, unsigned int *local_nodeid)

ctypedef cs_error_t (*membership_fn_t)(cpg_handle_t handle, const cpg_name *group) noexcept nogil


cpdef bytes encode(object message, object group)
cpdef object decode(bytes data, group)
