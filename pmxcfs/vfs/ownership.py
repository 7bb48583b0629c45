"""What chmod and chown answer: modes and owners follow from the path and can't be changed.

With *lenient* permissions such a request succeeds and changes nothing, because many programs take
a refusal for a failure of the whole copy. Only one stays refused: to take away the group's read
permission of a public object, as its caller believes that a secret is safe then. The kernel lets
only the owner, root, come so far.

Contract: docs/spec/filesystem.md, "Operations".
"""

import logging
import stat
from collections.abc import Callable

from pmxcfs.errors import NotPermitted

OWNER = 0  # uid of everything
MAX_PROGRAMS = 256  # names that are remembered as logged

_log = logging.getLogger("pmxcfs.fuse")


class Ownership:
    """Owner, group and modes of all objects, and the requests to change them."""

    def __init__(self, gid: int, *, lenient: bool, program_of: Callable[[int], str]) -> None:
        self.gid = gid  # gid of everything
        self._lenient = lenient
        self._program_of = program_of  # the name of the program of a process, by its pid
        self._logged: set[str] = set()  # names of programs

    def check_mode(self, wanted: int, *, present: int, private: bool, pid: int) -> None:
        """Raise NotPermitted unless the process *pid* may ask for the permission bits *wanted*.

        *present* are the permission bits of the object, *private* whether only root may access it.
        """
        if wanted in (0o600 if private else 0o640, present):
            return
        if not self._lenient or not (private or wanted & stat.S_IRGRP):
            raise NotPermitted("modes follow from the path and can't be changed")
        self._note_ignored(pid)

    def check_owner(self, *, uid: int | None, gid: int | None, pid: int) -> None:
        """Raise NotPermitted unless *pid* may ask for these owners; None: unchanged."""
        if uid in (None, OWNER) and gid in (None, self.gid):
            return
        if not self._lenient:
            raise NotPermitted("owner and group can't be changed")
        self._note_ignored(pid)

    def _note_ignored(self, pid: int) -> None:
        """Log, once for each program, that a change of a mode or an owner has no effect."""
        program = self._program_of(pid)
        if program not in self._logged and len(self._logged) < MAX_PROGRAMS:
            self._logged.add(program)
            _log.info("%s: chmod and chown succeed without effect (--permissions lenient)", program)
