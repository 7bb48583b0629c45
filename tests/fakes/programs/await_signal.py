"""Waits for a signal with ``process.SignalWaiter`` and prints each step.

``await_signal.py close`` ends the waiter without a signal.
"""

import sys
import threading
from pathlib import Path

from pmxcfs.host.process import SignalWaiter, name_process

name_process("waiting")
waiter = SignalWaiter()
stopped = threading.Event()


def on_stop() -> None:
    """Print the name of the calling thread."""
    print("stopped by", threading.current_thread().name, flush=True)
    stopped.set()


waiter.start(on_stop)
print("waiting as", Path("/proc/self/comm").read_text().strip(), flush=True)
if "close" not in sys.argv:
    stopped.wait()
waiter.close()
print("closed", flush=True)
