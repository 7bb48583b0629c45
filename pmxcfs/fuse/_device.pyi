from collections.abc import Callable

from typing_extensions import disjoint_base

__pyx_capi__: dict[str, object]  # the C interface, for cimport; nothing can be called from Python

MIN_MINOR: int
BACKGROUND: int
CONGESTED: int

@disjoint_base
class Device:
    """An open /dev/fuse, and who may read it."""

    def __init__(self, *args: object) -> None: ...

    turn: int  # the number of the reader whose turn it is to read
    @property
    def descriptor(self) -> int: ...
    @property
    def end_errno(self) -> int: ...  # by which the kernel has ended the session; 0: it has not
    def mount(self, target: bytes) -> None: ...
    def agree(self, seconds: float, prepare_queues: Callable[[], bool] | None = None) -> int: ...
    def never_look(self) -> None: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...
