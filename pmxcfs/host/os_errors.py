"""What a failed system call means for the administrator: the path, the reason, and the next step.

Contract: docs/spec/operations.md, "Exit statuses".
"""

import errno
import os
from collections.abc import Mapping
from types import MappingProxyType

from pmxcfs.text import escape, to_text

PERMISSION = frozenset([errno.EACCES, errno.EPERM])

_STEPS: Mapping[int, str] = MappingProxyType(
    {
        errno.ENOENT: "check the path",
        errno.ENOTDIR: "check the path",
        errno.EISDIR: "name a file",
        errno.ELOOP: "name the file itself instead of its symbolic links",
        errno.EEXIST: "move it away or name another one",
        errno.EACCES: "run the command as root",
        errno.EPERM: "run the command as root",
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "free some space",
        errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
        errno.EROFS: "name a place that can be written",
        errno.EIO: "look for the device's errors with dmesg",
        errno.ENAMETOOLONG: "name a shorter path",
        errno.EMFILE: "raise the limit of open files (ulimit -n)",
    }
)


def in_words(error: OSError) -> str:
    """Return what *error* is about, the reason, and the next step.

    Commands name the path in every error of a file. So one without a path is about their output.
    """
    path = error.filename
    named = isinstance(path, str | bytes)
    subject = escape(to_text(os.fsencode(path))) if named else "can't write the output"
    return f"{subject}: {reason_of(error)}"


def reason_of(error: OSError) -> str:
    """Return the reason and the next step, without the path, for a message that has the path."""
    reason = error.strerror or str(error)
    # As root, a lack of permission has another cause than the user.
    step = "" if error.errno in PERMISSION and os.geteuid() == 0 else _STEPS.get(error.errno or 0)
    return f"{reason}: {step}" if step else reason
