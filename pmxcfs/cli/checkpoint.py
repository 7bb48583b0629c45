"""``pmxcfs checkpoint``: what only the journal has is written into the database.

A running daemon is asked to save. Without one, this process does it, under the lock of the state
directory. Contract: docs/spec/storage.md, "Handing over"; operations.md, "Command line".
"""

import argparse
import errno
import os
import time
from pathlib import Path

from pmxcfs.errors import InUse, NotRunning, StoreError
from pmxcfs.host import clock
from pmxcfs.host.process import StateLock
from pmxcfs.ipc.client import IpcClient
from pmxcfs.settings import DATABASE_NAME, LOCKFILE_NAME, Settings
from pmxcfs.storage.fold import fold

SAVE_TIMEOUT = 60.0  # seconds that the daemon may take
LOCK_TIMEOUT = 5.0  # seconds for a daemon to end, or to begin to answer
POLL_INTERVAL = 0.05  # seconds


def checkpoint(arguments: argparse.Namespace) -> int:
    """Run ``checkpoint``; return 0. Raises StoreError, StartError, IpcError and OSError."""
    path = arguments.statedir / DATABASE_NAME
    if not path.exists():
        raise StoreError(f"{path} is not there: name the state directory with --statedir")
    if not os.access(path, os.R_OK, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    lock = arguments.statedir / LOCKFILE_NAME
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            with StateLock(lock, mountpoint=Settings.mountpoint, timeout=0):
                return _fold(path)
        except InUse as error:
            try:
                return _ask_daemon(path, arguments.ipc_name)
            except NotRunning:
                if time.monotonic() >= deadline:
                    raise error from None
        time.sleep(POLL_INTERVAL)


def _fold(path: Path) -> int:
    written = fold(path, now=clock.seconds()).replayed
    if written:
        print(f"{path}: {written} changes of the journal were written to it")
    else:
        print(f"{path}: has all changes of the journal")
    return 0


def _ask_daemon(path: Path, ipc_name: str) -> int:
    """Have the daemon save, and wait for that. Raises NotRunning if none answers."""
    with IpcClient(ipc_name) as client:
        number, deadline = client.begin_save(), time.monotonic() + SAVE_TIMEOUT
        while (outcome := client.save_outcome(number)) is None:
            if time.monotonic() >= deadline:
                raise StoreError(
                    f"{path} was not written within {SAVE_TIMEOUT:g} s: see pmxcfs status"
                )
            time.sleep(POLL_INTERVAL)
    if outcome:
        raise StoreError(outcome)
    print(f"{path}: the daemon has written all changes to it")
    return 0
