from collections.abc import Callable
from typing import Any

from typing_extensions import disjoint_base

from pmxcfs.fuse._device import Device
from pmxcfs.fuse.handlers import Handlers
from pmxcfs.fuse.interrupts import Interrupts

NAMES: dict[int, str]

@disjoint_base
class Reader:
    """One thread's buffers, and the request that it handles."""

    def __init__(
        self, number: int, device: Device, handlers: Handlers, lock: Any, interrupts: Interrupts
    ) -> None: ...

    is_interrupted: bool
    on_interrupt: Callable[[], None] | None
    @property
    def number(self) -> int: ...
    @property
    def unique(self) -> int: ...
    def run(self) -> None: ...
