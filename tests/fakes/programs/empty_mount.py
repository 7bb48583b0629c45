"""Mounts an empty llfuse file system that stops as the daemon does.

Usage: ``empty_mount.py DIRECTORY WORKERS``.
"""

import sys
import threading

import llfuse

from pmxcfs.host.process import SignalWaiter, end_llfuse_main


def main(mountpoint: str, workers: int) -> None:
    """Mount, and serve requests until a signal or an unmount."""
    waiter = SignalWaiter()
    llfuse.init(llfuse.Operations(), mountpoint, {"fsname=empty_mount"})
    finished = threading.Event()
    main_thread = threading.get_ident()
    waiter.start(lambda: end_llfuse_main(main_thread, finished))
    llfuse.main(workers=workers, handle_signals=True)
    finished.set()
    waiter.close()
    llfuse.close(unmount=True)


main(sys.argv[1], int(sys.argv[2]))
