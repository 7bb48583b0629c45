from collections.abc import Callable
from typing import Any, Self, final

@final
class Server:
    """A libqb service for local clients."""

    def __new__(
        cls,
        name: str,
        *,
        admit: Callable[[int, int, int], Any],
        answer: Callable[[Any, int, bytes], bytes | int],
    ) -> Self: ...
    def run(self) -> None: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...
    @property
    def connections(self) -> int: ...
