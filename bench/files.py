"""Reading and writing a file as clients do, by single system calls."""

import os

from bench.goals import KIB

READ = os.O_RDONLY
REWRITE = os.O_WRONLY | os.O_TRUNC
CREATE = REWRITE | os.O_CREAT  # as editors, cp and a shell's > do; Proxmox VE's library has O_EXCL
BUFFER = 64 * KIB  # the size of a reader's buffer for a small file


def read_file(path: str, size: int = BUFFER) -> None:
    """Open a file, read once, and close it."""
    fd = os.open(path, READ)
    os.read(fd, size)
    os.close(fd)


def write_file(path: str, flags: int, data: bytes, *, times: int = 1) -> None:
    """Open a file, write *data* *times* times, and close it."""
    fd = os.open(path, flags)
    for _ in range(times):
        os.write(fd, data)
    os.close(fd)
