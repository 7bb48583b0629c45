"""What a group's thread sleeps on, and how another one keeps it asleep and listens in its place.

Two epolls, one in the other: all that can happen is registered with the inner one. Who acts for the
group listens to that; who sleeps until it has to act does so on the outer one, which can be hushed
without waking anybody. What happens meanwhile is not lost: it rings when the hush ends, unless it
was listened to. A third one has the same and a door beside it, for who has to keep that.

Threads: ``sleep`` is for one, all else for the one that acts.
"""

import select

from pmxcfs.replica.waiting import Door


class Alarm:
    """Rings when *descriptor* can be read, and when *wakeup*, an eventfd, was written."""

    def __init__(self, descriptor: int, wakeup: int) -> None:
        self._descriptor = descriptor
        self._wakeup = wakeup
        self._door = -1  # the descriptor of the one that was kept first
        self._inner, self._outer, self._at_door = select.epoll(), select.epoll(), select.epoll()
        for listening in (self._inner, self._at_door):
            listening.register(descriptor, select.EPOLLIN)
            # Each write counts once, whatever the counter says: so nobody has to read that.
            listening.register(wakeup, select.EPOLLIN | select.EPOLLET)
        self._outer.register(self._inner, select.EPOLLIN)

    def close(self) -> None:
        """Nobody may wait for it any more."""
        self._outer.close()
        self._inner.close()
        self._at_door.close()

    def sleep(self, seconds: float) -> None:
        """Return when it rings, or after *seconds*. What has rung is still to be listened to."""
        self._outer.poll(seconds, 1)

    def listen(self, seconds: float, door: Door | None = None) -> bool:
        """Do the same, hushed or not, and settle it; tell whether the descriptor can be read.

        Return, too, when somebody comes to the *door*, if that is kept, having left it then.
        """
        if door is None or not door.is_kept:
            return self._descriptor in dict(self._inner.poll(seconds, 2))
        rung = dict(self._poll_at(door, seconds))
        if self._door in rung:
            door.leave()
        if self._wakeup in rung:
            self._inner.poll(0, 2)  # settles it there
        return self._descriptor in rung

    def _poll_at(self, door: Door, seconds: float) -> list[tuple[int, int]]:
        if self._door != door.fileno():
            self._at_door.register(door.fileno(), select.EPOLLIN)
            self._door = door.fileno()
        return self._at_door.poll(seconds, 3)

    def hush(self) -> None:
        """Let who sleeps sleep on, whatever happens."""
        self._outer.modify(self._inner, 0)

    def end_hush(self) -> None:
        """Undo that; what has rung and was not listened to rings now."""
        self._outer.modify(self._inner, select.EPOLLIN)
