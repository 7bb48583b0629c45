from collections.abc import Callable

from typing_extensions import disjoint_base

from pmxcfs.fuse._device import Device
from pmxcfs.fuse._dispatcher import Dispatcher
from pmxcfs.fuse.handlers import Handlers
from pmxcfs.fuse.interrupts import Interrupts
from pmxcfs.host.locking import Lock

@disjoint_base
class Slots:
    """The slots of one CPU's queue, and what its threads have in common."""

    def __init__(self, cpu: int, count: int, device: Device, stop_descriptor: int) -> None: ...

    is_stopping: bool  # no request is begun any more
    is_over: bool  # the threads shall end
    @property
    def cpu(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def stop_descriptor(self) -> int: ...

@disjoint_base
class Ring:
    """The ring of one thread, which alone may use it."""

    def __init__(self, slots: Slots, completions: int = 8) -> None: ...
    @property
    def slots(self) -> Slots: ...
    def close(self) -> None: ...

class Keeper(Ring):
    """The ring of a queue's thread, which keeps the slots that no worker has."""

    def __init__(self, slots: Slots) -> None: ...
    def register(self) -> None: ...
    def run(self, add_worker: Callable[[], Worker | None], substitute: Worker) -> None: ...

@disjoint_base
class Worker(Dispatcher):
    """Answers the requests of one slot, which nobody else has from then on."""

    def __init__(self, handlers: Handlers, lock: Lock, interrupts: Interrupts) -> None: ...
    def run(self, ring: Ring) -> None: ...
