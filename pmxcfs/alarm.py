"""What a group's thread sleeps on, and how another one keeps it asleep and listens in its place.

Two epolls, one in the other: all that can happen is registered with the inner one. Who acts for the
group listens to that; who sleeps until it has to act does so on the outer one, which can be hushed
without waking anybody. What happens meanwhile is not lost: it rings when the hush ends, unless it
was listened to.

Threads: ``sleep`` is for one, all else for the one that acts.
"""

import select


class Alarm:
    """Rings when *descriptor* can be read, and when *wakeup*, an eventfd, was written."""

    def __init__(self, descriptor: int, wakeup: int) -> None:
        self._descriptor = descriptor
        self._inner = select.epoll()
        self._outer = select.epoll()
        self._inner.register(descriptor, select.EPOLLIN)
        # Each write counts once, whatever the counter says: so nobody has to read that.
        self._inner.register(wakeup, select.EPOLLIN | select.EPOLLET)
        self._outer.register(self._inner, select.EPOLLIN)

    def close(self) -> None:
        """Nobody may wait for it any more."""
        self._outer.close()
        self._inner.close()

    def sleep(self, seconds: float) -> None:
        """Return when it rings, or after *seconds*. What has rung is still to be listened to."""
        self._outer.poll(seconds, 1)

    def listen(self, seconds: float) -> bool:
        """Do the same, hushed or not, and settle it; tell whether the descriptor can be read."""
        return self._descriptor in dict(self._inner.poll(seconds, 2))

    def hush(self) -> None:
        """Let who sleeps sleep on, whatever happens."""
        self._outer.modify(self._inner, 0)

    def end_hush(self) -> None:
        """Undo that; what has rung and was not listened to rings now."""
        self._outer.modify(self._inner, select.EPOLLIN)
