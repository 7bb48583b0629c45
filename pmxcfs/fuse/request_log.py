"""Descriptions of kernel requests for debug messages: paths, names, numbers and sizes.

They contain no content of files and nothing about private entries. Needs the tree's lock.
Contract: docs/spec/operations.md, "Logging".
"""

from collections.abc import Mapping

from pmxcfs._core import Entry
from pmxcfs.fuse.node_ids import ROOT
from pmxcfs.status.files import Link, Snapshot, Switch
from pmxcfs.text import to_text
from pmxcfs.tree.modes import PRIVATE
from pmxcfs.vfs.writeback import OpenFile

_BY_HANDLE = frozenset({"read", "write", "flush", "fsync", "release"})
_BY_LISTING = frozenset({"readdir", "releasedir"})
_SECOND_NODE = {"rename": 2, "link": 1}  # index of the argument that is a second node id


def subject_of(
    name: str,
    arguments: tuple[object, ...],
    *,
    nodes: Mapping[int, object],
    handles: Mapping[int, object],
) -> str:
    """Return a description of the request *name*: paths, names, and the range of bytes."""
    if name in _BY_LISTING:
        return f"#{arguments[0]}"
    number = arguments[0] if isinstance(arguments[0], int) else ROOT
    by_handle = name in _BY_HANDLE
    words = [_described((handles if by_handle else nodes).get(number))]
    for index, argument in enumerate(arguments[1:], start=1):
        if isinstance(argument, int):
            is_node = index == _SECOND_NODE.get(name)
            words.append(_described(nodes.get(argument)) if is_node else str(argument))
        elif isinstance(argument, bytes):
            words.append(f"{len(argument)} bytes" if by_handle else to_text(argument))
    return PRIVATE if PRIVATE in words else " ".join(words)


def _described(found: object) -> str:
    if found is None:
        return PRIVATE  # an unknown object may be a private one
    if isinstance(found, OpenFile):
        return _described(found.entry)
    if isinstance(found, Entry):
        return PRIVATE if found.private else f"/{found.path}"
    if isinstance(found, Snapshot):
        return f"/{found.file.name}"
    if isinstance(found, Link | Switch):
        return f"/{found.name}"
    return "/"
