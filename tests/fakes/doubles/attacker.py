"""An attacker who exchanges a directory for a symbolic link, before a chosen call of the os module.

It acts in the same process, so each test can try every step of the code under test in turn.
"""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

ATTACKED_CALLS = ("open", "mkdir", "rename", "unlink", "stat", "listdir", "utime", "fchmod")
NOBODY = 65534


def make_foreign_link(link: Path, target: Path) -> None:
    """Make a symbolic link; if this process may, it gets another user as its owner."""
    link.symlink_to(target)
    if os.getuid() == 0:
        os.lchown(link, NOBODY, NOBODY)


class Attacker:
    """Replaces the directory *place* by a link to *victim*, before the call number *step* or later.

    It does that as soon as the directory is there.
    """

    def __init__(self, place: Path, victim: Path, *, step: int) -> None:
        self.has_acted = False
        self._place = place
        self._victim = victim
        self._left = step
        self._originals: dict[str, Callable[..., object]] = {
            name: getattr(os, name) for name in ATTACKED_CALLS
        }

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        """Watch the calls of the block."""
        for name, original in self._originals.items():
            setattr(os, name, self._watched(original))
        try:
            yield
        finally:
            for name, original in self._originals.items():
                setattr(os, name, original)

    def _watched(self, original: Callable[..., object]) -> Callable[..., object]:
        def watched(*arguments: object, **options: object) -> object:
            self._left -= 1
            if self._left <= 0 and not self.has_acted and self._is_there():
                self.has_acted = True
                self._originals["rename"](self._place, self._place.with_name("moved-away"))
                make_foreign_link(self._place, self._victim)
            return original(*arguments, **options)

        return watched

    def _is_there(self) -> bool:
        with contextlib.suppress(OSError):
            status = self._originals["stat"](self._place, follow_symlinks=False)
            return isinstance(status, os.stat_result) and stat.S_ISDIR(status.st_mode)
        return False
