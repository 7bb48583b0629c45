"""What a group's thread sleeps on, and how another one keeps it asleep and listens in its place.

Two epolls, one in the other: all that can happen is registered with the inner one. Who acts for the
group listens to that; who sleeps until it has to act does so on the outer one, which can be muted
without waking anybody. What happens meanwhile is not lost: it rings when the mute ends, unless it
was listened to. A third one has the same and a watch beside it, for who has to keep that.

Threads: ``sleep`` is for one, all else for the one that acts.
"""

import select

from pmxcfs.replica.waiting import RequestWatch


class Poller:
    """Rings when *descriptor* can be read, and when *wakeup*, an eventfd, was written."""

    def __init__(self, descriptor: int, wakeup: int) -> None:
        self._descriptor = descriptor
        self._wakeup = wakeup
        self._watch = -1  # the descriptor of the one that was kept first
        self._inner, self._outer, self._with_watch = select.epoll(), select.epoll(), select.epoll()
        for listening in (self._inner, self._with_watch):
            listening.register(descriptor, select.EPOLLIN)
            # Each write counts once, whatever the counter says: so nobody has to read that.
            listening.register(wakeup, select.EPOLLIN | select.EPOLLET)
        self._outer.register(self._inner, select.EPOLLIN)

    def close(self) -> None:
        """Nobody may wait for it any more."""
        self._outer.close()
        self._inner.close()
        self._with_watch.close()

    def sleep(self, seconds: float) -> None:
        """Return when it rings, or after *seconds*. What has rung is still to be listened to."""
        self._outer.poll(seconds, 1)

    def listen(self, seconds: float, watch: RequestWatch | None = None) -> bool:
        """Do the same, muted or not, and settle it; tell whether the descriptor can be read.

        Return, too, when somebody comes to the *watch*, if that is kept, having left it then.
        """
        if watch is None or not watch.is_active:
            return self._descriptor in dict(self._inner.poll(seconds, 2))
        rung = dict(self._poll_at(watch, seconds))
        if self._watch in rung:
            watch.stop()
        if self._wakeup in rung:
            self._inner.poll(0, 2)  # settles it there
        return self._descriptor in rung

    def _poll_at(self, watch: RequestWatch, seconds: float) -> list[tuple[int, int]]:
        if self._watch != watch.fileno():
            self._with_watch.register(watch.fileno(), select.EPOLLIN)
            self._watch = watch.fileno()
        return self._with_watch.poll(seconds, 3)

    def mute(self) -> None:
        """Let who sleeps sleep on, whatever happens."""
        self._outer.modify(self._inner, 0)

    def unmute(self) -> None:
        """Undo that; what has rung and was not listened to rings now."""
        self._outer.modify(self._inner, select.EPOLLIN)
