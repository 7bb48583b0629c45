from typing_extensions import disjoint_base

from pmxcfs.fuse._device import Device
from pmxcfs.fuse._dispatcher import Dispatcher
from pmxcfs.fuse.handlers import Handlers
from pmxcfs.fuse.interrupts import Interrupts
from pmxcfs.host.locking import Lock

@disjoint_base
class Reader(Dispatcher):
    """One thread's buffer, and the request that it handles."""

    def __init__(
        self, number: int, device: Device, handlers: Handlers, lock: Lock, interrupts: Interrupts
    ) -> None: ...
    @property
    def number(self) -> int: ...
    def run(self) -> None: ...
