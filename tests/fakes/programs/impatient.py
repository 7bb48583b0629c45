"""A client of a mount that survives SIGINT: ``impatient.py DIRECTORY OPERATION``.

It prints ``ready``, does the operation in DIRECTORY, and prints its errno, 0 for success. It calls
the C library, as Python repeats calls that a signal has interrupted. OPERATION ``all`` does one
after the other until a SIGINT; then it prints which of its names are there, by the answers.
"""

import ctypes
import itertools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
NEW = os.O_CREAT | os.O_WRONLY | os.O_TRUNC

is_interrupted = False


def on_interrupt(number: int, frame: object) -> None:
    """Note the signal."""
    global is_interrupted
    is_interrupted = True


def errno_of(result: int) -> int:
    """Return the errno of a call of the C library that has returned *result*."""
    return ctypes.get_errno() if result < 0 else 0


def close(descriptor: int) -> int:
    """Close, also a descriptor that could not be opened."""
    return errno_of(LIBC.close(descriptor)) if descriptor >= 0 else 0


def written(name: bytes, content: bytes) -> int:
    """Return a descriptor of a file with *content* that is not published."""
    descriptor: int = LIBC.open(name, NEW, 0o640)
    if descriptor >= 0:
        LIBC.write(descriptor, content, len(content))
    return descriptor


def operation(name: str) -> Callable[[], int]:
    """Return the operation *name*, of which all but the last system call is done."""
    if name in ("close", "fsync"):
        descriptor = written(b"file", b"mine")
        return lambda: errno_of(getattr(LIBC, name)(descriptor))
    calls: dict[str, Callable[[], int]] = {
        "mkdir": lambda: LIBC.mkdir(b"new", 0o755),
        "rmdir": lambda: LIBC.rmdir(b"directory"),
        "unlink": lambda: LIBC.unlink(b"file"),
        "rename": lambda: LIBC.rename(b"file", b"moved"),
        "create": lambda: LIBC.open(b"new", NEW | os.O_EXCL, 0o640),
        "utime": lambda: LIBC.utimensat(AT_FDCWD, b"file", None, 0),
        "truncate": lambda: LIBC.truncate(b"file", ctypes.c_long(2)),
    }
    return lambda: errno_of(calls[name]())


def steps(number: int, there: dict[str, bool]) -> Iterator[int]:
    """Do one operation after the other, and note in *there* what it has changed."""
    failure = errno_of(LIBC.mkdir(b"d", 0o755))
    there["d"] |= not failure
    yield failure
    descriptor: int = LIBC.open(b"f", NEW, 0o640)
    failure = errno_of(descriptor)
    there["f"] |= not failure
    yield failure
    if not failure:
        LIBC.write(descriptor, b"x" * number, number)
        yield close(descriptor)
    failure = errno_of(LIBC.rename(b"f", b"g"))
    if not failure:
        there["f"], there["g"] = False, True
    yield failure
    yield errno_of(LIBC.utimensat(AT_FDCWD, b"g", None, 0))
    failure = errno_of(LIBC.unlink(b"g"))
    there["g"] &= bool(failure)
    yield failure
    failure = errno_of(LIBC.rmdir(b"d"))
    there["d"] &= bool(failure)
    yield failure


def main(directory: str, name: str) -> None:
    """Do what the arguments say."""
    signal.signal(signal.SIGINT, on_interrupt)
    os.chdir(directory)
    if name != "all":
        call = operation(name)
        print("ready", flush=True)
        print(call(), flush=True)
        return
    print("ready", flush=True)
    there = dict.fromkeys("dfg", False)
    for number in itertools.count(1):
        for _ in steps(number, there):
            if is_interrupted:
                print(json.dumps(there), flush=True)
                return


main(*sys.argv[1:])
