from types import TracebackType

from typing_extensions import disjoint_base

@disjoint_base
class Lock:
    """A lock for one thread at a time, like ``threading.Lock``. A signal does not end a wait."""

    def acquire(self, blocking: bool = True, timeout: float = -1.0) -> bool: ...
    def release(self) -> None: ...
    def locked(self) -> bool: ...
    def __enter__(self) -> bool: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...
