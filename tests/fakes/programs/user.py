"""Commands by a user who is not root: ``user.py DIR GID``, one JSON list a line, paths from DIR.

``["read", PATH]``, ``["stat", PATH]``, ``["list", PATH]``, ``["write", PATH]``, ``["hold", PATH]``
(open it and keep it open) and ``["reopen"]`` (what is held, anew). Each is answered by the name of
its errno, or ``ok``.
"""

import errno
import json
import os
import sys
from pathlib import Path

NOBODY = 65534


def main(directory: str, gid: int) -> None:
    """Go to a directory, drop root's rights, answer until the input ends."""
    os.chdir(directory)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    held = -1
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        try:
            match command:
                case "read":
                    Path(arguments[0]).read_bytes()
                case "stat":
                    os.stat(arguments[0])
                case "list":
                    os.listdir(arguments[0])
                case "write":
                    os.close(os.open(arguments[0], os.O_WRONLY))
                case "hold":
                    held = os.open(arguments[0], os.O_RDONLY)
                case "reopen":
                    os.close(os.open(f"/proc/self/fd/{held}", os.O_RDONLY))
            print("ok", flush=True)
        except OSError as error:
            print(errno.errorcode[error.errno or 0], flush=True)


main(sys.argv[1], int(sys.argv[2]))
