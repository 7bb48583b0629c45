# cython: language_level=3
"""Looking for the next request before a thread sleeps.

What a request costs is mostly the waking of a CPU that sleeps. So the thread that takes requests
looks for the next one for a while, if they have come promptly: it yields to a client on the same
CPU at first, then it spins. The interpreter's lock is not held meanwhile.
Contract: docs/spec/session.md, "Looking".
"""

from libc.stdint cimport int64_t

cdef extern from * nogil:
    """
    #if defined(__x86_64__) || defined(__i386__)
    #define relax_cpu() __builtin_ia32_pause()
    #elif defined(__aarch64__)
    #define relax_cpu() __asm__ __volatile__("yield")
    #else
    #define relax_cpu() ((void)0)
    #endif
    """
    void relax_cpu()

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from "<time.h>" nogil:
    struct timespec:
        int64_t tv_sec
        int64_t tv_nsec
    enum:
        CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *time)

cdef enum:
    LOOK_NS = 50000  # for which a thread looks before it sleeps
    PROMPT_NS = 50000  # after the looking, in which a request still counts as prompt
    MIN_PROMPT = 4  # prompt requests in a row, after which a thread looks
    MAX_IN_VAIN = 3  # looks in vain in a row, after which it does not
    YIELDS = 3  # first looks, each of which lets another thread have the CPU
    PAUSES = 20  # between two later looks


cdef struct Looking:
    bint is_allowed
    int64_t look_ns  # for which to look now; 0: not at all
    int64_t answered_ns  # monotonic time of the last answer
    int looks  # since then
    int prompt  # requests in a row
    int in_vain  # in a row


cdef inline int64_t monotonic_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec * 1000000000 + now.tv_nsec


cdef inline void note_answer(Looking *looking) noexcept nogil:
    """Note that a request was answered just now."""
    looking.answered_ns = monotonic_ns()
    looking.looks = 0


cdef inline void note_arrival(Looking *looking) noexcept nogil:
    """Note that a request has come: whether they come promptly decides about looking."""
    cdef int64_t gap = monotonic_ns() - looking.answered_ns
    looking.looks = 0
    if gap < looking.look_ns:
        looking.in_vain = 0
    if gap >= LOOK_NS + PROMPT_NS:
        looking.prompt = 0
    elif looking.is_allowed and looking.look_ns == 0:
        looking.prompt = looking.prompt + 1
        if looking.prompt >= MIN_PROMPT:
            looking.look_ns, looking.in_vain = LOOK_NS, 0


cdef inline bint look_again(Looking *looking) noexcept nogil:
    """Let some time pass, after which to look again; False: it is time to sleep."""
    cdef int _pause
    if looking.look_ns == 0:
        return False
    if monotonic_ns() - looking.answered_ns >= looking.look_ns:
        looking.in_vain = looking.in_vain + 1
        if looking.in_vain >= MAX_IN_VAIN:
            looking.look_ns = looking.prompt = 0
        return False
    if looking.looks < YIELDS:
        looking.looks = looking.looks + 1
        sched_yield()  # else a client on this CPU could not run
    else:
        for _pause in range(PAUSES):
            relax_cpu()
    return True
