"""What a five-node cluster with HA writes while nobody changes anything.

Each node rewrites its ``lrm_status`` every 5 s, through a temporary file. The master does the same
with ``manager_status`` every 10 s. A utime renews the lock of the master and that of each node once
a minute. Every node applies the changes of all, so one node alone can play them.
Contract: docs/spec/storage.md, "Bytes".
"""

import heapq
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from bench.files import CREATE, write_file

NODES = 5
HOUR = 3600.0  # seconds
MANAGER_LOCK = "priv/lock/ha_manager_lock"
STATUS_INTERVAL, MANAGER_INTERVAL, LOCK_INTERVAL = 5.0, 10.0, 60.0  # seconds
STATUS_SIZE, MANAGER_SIZE = 300, 2048  # bytes
START = 1_795_000_000  # seconds since 1970 of the first content, with as many digits as a real one

Action = Callable[[int], None]


class Task(NamedTuple):
    """An action and its times: the first after *phase* seconds, then one per *interval*."""

    phase: float
    interval: float
    action: Action


def prepare(root: str) -> None:
    """Make the directories and locks below a mountpoint."""
    for directory in [
        "ha",
        "priv/lock/ha_manager_lock",
        *map(_home, names()),
        *map(_lock, names()),
    ]:
        os.makedirs(f"{root}/{directory}", exist_ok=True)


def names() -> list[str]:
    """Return the names of the nodes."""
    return [f"node{number}" for number in range(1, 1 + NODES)]


def play(
    root: str,
    *,
    seconds: float,
    speed: float = 1.0,
    on_replaced: Callable[[], None] = lambda: None,
) -> None:
    """Do what is done in *seconds*, *speed* times as fast; call *on_replaced* each time. Blocks."""
    begin = time.monotonic()
    for due, number, action in _due(_tasks(root), seconds):
        pause = begin + due / speed - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        action(number)
        on_replaced()


def _tasks(root: str) -> list[Task]:
    """Return the tasks of all nodes, whose phases are spread as those of real nodes are."""
    tasks = [Task(0.3, MANAGER_INTERVAL, lambda number: _write_manager(root, number))]
    tasks.append(Task(1.1, LOCK_INTERVAL, lambda number: _renew(root, MANAGER_LOCK)))
    for index, name in enumerate(names()):
        phase = index * STATUS_INTERVAL / NODES
        tasks.append(Task(phase, STATUS_INTERVAL, _status_writer(root, name)))
        tasks.append(Task(phase + 1.5, LOCK_INTERVAL, _renewer(root, _lock(name))))
    return tasks


def _due(tasks: list[Task], seconds: float) -> Iterator[tuple[float, int, Action]]:
    """Yield time, number and action of all that is due within *seconds*, in order."""

    def times(task: Task) -> Iterator[tuple[float, int, Action]]:
        for number in itertools.count():
            due = task.phase + number * task.interval
            if due >= seconds:
                return
            yield due, number, task.action

    yield from heapq.merge(*map(times, tasks), key=lambda item: item[0])


def _status_writer(root: str, name: str) -> Action:
    return lambda number: _replace(root, f"{_home(name)}/lrm_status", _status(name, number))


def _renewer(root: str, path: str) -> Action:
    return lambda number: _renew(root, path)


def _write_manager(root: str, number: int) -> None:
    _replace(root, "ha/manager_status", _manager(number))


def _status(name: str, number: int) -> bytes:
    """Return the state of a node that has nothing to do: only its time differs."""
    state = {
        "mode": "active",
        "results": {},
        "state": "wait_for_agent_lock",
        "timestamp": START + int(number * STATUS_INTERVAL),
        "node": name,
    }
    return json.dumps(state).encode().ljust(STATUS_SIZE, b" ")


def _manager(number: int) -> bytes:
    services = {
        f"vm:{100 + index}": {
            "node": f"node{1 + index % NODES}",
            "state": "started",
            "uid": str(index),
        }
        for index in range(20)
    }
    state = {
        "master_node": "node1",
        "node_status": dict.fromkeys(names(), "online"),
        "service_status": services,
        "timestamp": START + int(number * MANAGER_INTERVAL),
    }
    return json.dumps(state).encode().ljust(MANAGER_SIZE, b" ")


def _replace(root: str, path: str, content: bytes) -> None:
    """Write a file as Proxmox VE does: through a temporary file beside it."""
    temporary = f"{root}/{path}.tmp.{os.getpid()}"
    write_file(temporary, CREATE, content)
    os.rename(temporary, f"{root}/{path}")


def _renew(root: str, path: str) -> None:
    os.utime(f"{root}/{path}")


def _home(name: str) -> str:
    return f"nodes/{name}"


def _lock(name: str) -> str:
    return f"priv/lock/ha_agent_{name}_lock"
