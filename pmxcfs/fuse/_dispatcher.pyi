from collections.abc import Callable

from typing_extensions import disjoint_base

from pmxcfs.fuse.handlers import Handlers
from pmxcfs.fuse.interrupts import Interrupts
from pmxcfs.host.locking import Lock

NAMES: dict[int, str]

@disjoint_base
class Dispatcher:
    """Handles one request after the other, and makes the replies."""

    def __init__(self, handlers: Handlers, lock: Lock, interrupts: Interrupts) -> None: ...

    is_interrupted: bool
    on_interrupt: Callable[[], None] | None
    @property
    def unique(self) -> int: ...
