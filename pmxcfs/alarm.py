"""What a group's thread sleeps on, and how another one keeps it asleep and listens in its place.

Two epolls, one in the other: all that can happen is registered with the inner one. Who acts for the
group listens to that; who sleeps until it has to act does so on the outer one, which can be hushed
without waking anybody. What happens meanwhile is not lost: it rings when the hush ends.

Threads: ``ring`` is for any; ``listen`` and ``hushed`` for the one that acts, ``sleep`` for one
other.
"""

import contextlib
import select
from collections.abc import Iterator


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
        rung = self._inner.poll(seconds, 2)
        return any(descriptor == self._descriptor for descriptor, _ in rung)

    @contextlib.contextmanager
    def hushed(self) -> Iterator[None]:
        """Let who sleeps sleep on until the block ends."""
        self._outer.modify(self._inner, 0)
        try:
            yield
        finally:
            self._outer.modify(self._inner, select.EPOLLIN)
