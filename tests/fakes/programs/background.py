"""Calls ``process.daemonize`` and ends as told: ``background.py MOUNTPOINT HOW``.

HOW is ``refuse``, ``die``, ``fail-later`` or anything else, which succeeds without a mount.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from pmxcfs.errors import StartError
from pmxcfs.host.process import daemonize


def body(ready: Callable[[], None]) -> int:
    """End in the way that HOW names."""
    how = sys.argv[2]
    if how == "refuse":
        raise StartError("no: \xe4")
    if how == "die":
        os._exit(7)
    ready()
    if how == "fail-later":
        raise StartError("too late to be reported")
    return 0


sys.exit(daemonize(body, mountpoint=Path(sys.argv[1])))
