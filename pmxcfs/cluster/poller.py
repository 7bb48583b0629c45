"""The poller of a group's thread, which another thread can mute to poll in its place.

There are three epoll instances:

- the inner one polls corosync's descriptor and an eventfd for wake-ups; the group's owner uses it
- the outer one polls only the inner one; the group's thread sleeps on it, and ``mute`` disables it
  without waking that thread
- the third one polls what the inner one polls and the FUSE descriptor; an owner with an active
  RequestWatch uses it

An event that comes while the poller is muted wakes the group's thread after ``unmute``, unless
``listen`` has consumed the event.

Threads: only the group's thread calls ``sleep``; only the owner of the group calls the rest.
Contract: docs/spec/cluster.md, "One owner of a handle".
"""

import select

from pmxcfs.replica.waiting import RequestWatch


class Poller:
    """Polls *descriptor* for input, and *wakeup*, an eventfd, for writes."""

    def __init__(self, descriptor: int, wakeup: int) -> None:
        self._descriptor = descriptor
        self._wakeup = wakeup
        self._watched = -1  # the RequestWatch's registered descriptor; -1: none yet
        self._inner, self._outer, self._with_watch = select.epoll(), select.epoll(), select.epoll()
        for epoll in (self._inner, self._with_watch):
            epoll.register(descriptor, select.EPOLLIN)
            # Edge-triggered: each write is one event, so the counter need not be read.
            epoll.register(wakeup, select.EPOLLIN | select.EPOLLET)
        self._outer.register(self._inner, select.EPOLLIN)

    def close(self) -> None:
        """Close the epoll instances. No thread may use the poller any more."""
        self._outer.close()
        self._inner.close()
        self._with_watch.close()

    def sleep(self, seconds: float) -> None:
        """Block until an event comes, unless muted, but at most *seconds*. Consumes no event."""
        self._outer.poll(seconds, 1)

    def listen(self, seconds: float, watch: RequestWatch | None = None) -> bool:
        """Block until an event comes, muted or not, but at most *seconds*; consume a wake-up.

        Return whether the descriptor is readable. If *watch* is active, a request from the kernel
        ends the wait too, and stops the watch.
        """
        if watch is None or not watch.is_active:
            return _is_in(self._descriptor, self._inner.poll(seconds, 2))
        ready = self._poll_with_watch(watch, seconds)
        if _is_in(self._watched, ready):
            watch.stop()
        if _is_in(self._wakeup, ready):
            self._inner.poll(0, 2)  # consumes the wake-up there, too
        return _is_in(self._descriptor, ready)

    def _poll_with_watch(self, watch: RequestWatch, seconds: float) -> list[tuple[int, int]]:
        if self._watched != watch.fileno():
            self._with_watch.register(watch.fileno(), select.EPOLLIN)
            self._watched = watch.fileno()
        return self._with_watch.poll(seconds, 3)

    def mute(self) -> None:
        """Make ``sleep`` ignore all events until ``unmute``."""
        self._outer.modify(self._inner, 0)

    def unmute(self) -> None:
        """Undo ``mute``: an event that came meanwhile and was not consumed ends ``sleep`` now."""
        self._outer.modify(self._inner, select.EPOLLIN)


def _is_in(descriptor: int, events: list[tuple[int, int]]) -> bool:
    """Return whether *events* has one of *descriptor*."""
    return descriptor in [ready for ready, _ in events]
