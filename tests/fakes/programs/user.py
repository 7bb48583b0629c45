"""File operations as an unprivileged user: ``user.py DIRECTORY GID``.

Each line on standard input is a JSON list, with paths relative to DIRECTORY: ``["read", PATH]``,
``["stat", PATH]``, ``["list", PATH]``, ``["write", PATH]``, ``["chmod", PATH]``, ``["hold", PATH]``
(open a file and keep it open) or ``["reopen"]`` (open the held file again). The answer is ``ok`` or
an errno name.
"""

import errno
import json
import os
import sys
from pathlib import Path

NOBODY = 65534


def main(directory: str, gid: int) -> None:
    """Change to *directory*, drop root's privileges, and answer until the input ends."""
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
                case "chmod":
                    os.chmod(arguments[0], 0o644)
                case "hold":
                    held = os.open(arguments[0], os.O_RDONLY)
                case "reopen":
                    os.close(os.open(f"/proc/self/fd/{held}", os.O_RDONLY))
            print("ok", flush=True)
        except OSError as error:
            print(errno.errorcode[error.errno or 0], flush=True)


main(sys.argv[1], int(sys.argv[2]))
