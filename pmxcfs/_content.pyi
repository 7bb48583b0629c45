from typing import NamedTuple, final

__pyx_capi__: dict[str, object]  # what a cimport looks the C interface up in

class Unpublished(NamedTuple):
    """What a file's next WRITE message has to carry."""

    offset: int
    data: bytes
    truncate: bool

@final
class Draft:
    """A file's unpublished content; used by ``_core`` through its C interface only."""
