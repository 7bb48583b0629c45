"""Program that runs a lab and waits to be killed.

usage: python -m tests.cluster.abandoned DIRECTORY [wedge]

With "wedge" the first process of a node is stopped, so it can't notice that the lab is gone.
"""

import os
import signal
import sys
from pathlib import Path

from tests.cluster import sweep
from tests.cluster.agent import Agent
from tests.cluster.lab import Lab


def await_signal() -> None:
    """Print that a signal may come, and wait for it. ``pause`` would miss an early one."""
    told, tells = os.pipe()
    os.set_blocking(tells, False)
    signal.set_wakeup_fd(tells)
    print("ready", flush=True)
    os.read(told, 1)


def main() -> None:
    """Run until a signal comes."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - the trace of the interrupt
    with Lab(Path(sys.argv[1])) as lab:
        lab[1].daemon.start("--local")
        lab[1].daemon.wait_until_mounted()
        agent = Agent(lab[1])
        lab[1].daemon.freeze()
        agent.begin(("put", "file", b"never written"))
        if "wedge" in sys.argv:
            for pid in sweep.mine():
                os.kill(pid, signal.SIGSTOP)
        await_signal()


if __name__ == "__main__":
    main()
