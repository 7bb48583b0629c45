from typing import NamedTuple, final

__pyx_capi__: dict[str, object]  # the C interface, for cimport

class Unpublished(NamedTuple):
    """The fields of the WRITE message that publishes the dirty bytes of a file."""

    offset: int
    data: bytes
    truncate: bool

@final
class Draft:
    """A file's content with unpublished writes; ``_core`` uses it through its C interface only."""
