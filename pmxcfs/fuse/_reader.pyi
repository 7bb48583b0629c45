from typing import Any

from typing_extensions import disjoint_base

from pmxcfs.fuse._device import Device
from pmxcfs.fuse.handlers import Handlers

NAMES: dict[int, str]

@disjoint_base
class Reader:
    """One thread's buffers, and the request that it handles."""

    def __init__(self, number: int, device: Device, handlers: Handlers, lock: Any) -> None: ...
    @property
    def number(self) -> int: ...
    def run(self) -> None: ...
