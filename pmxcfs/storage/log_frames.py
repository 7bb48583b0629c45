"""The frames of a write-ahead log that count, found without SQLite.

Frames count as SQLite counts them: from the first one on, as long as salt and checksum are right,
and up to the last one that ends a transaction. What stands behind a damaged frame does not count.
Whether it would have is told, as SQLite does not tell it: later frames with the salt of this log,
whose checksums go on from those of the frames before them. Not if they only end the transaction of
that frame: a power cut can tear the last transaction anywhere, and no later one begins before it is
on the device.

Format: sqlite.org/fileformat2.html, "The Write-Ahead Log".
"""

import os
import struct
import sys
from collections.abc import Mapping
from typing import NamedTuple

from pmxcfs.storage.pages import PAGE_SIZES

_HEADER = struct.Struct(">8I")  # magic, format, page size, count, two salts, two checksums
_FRAME = struct.Struct(">6I")  # page, pages in the file after a commit or 0, salts, checksums
_MAGIC = 0x377F0682  # plus 1 if the words of the checksum are big-endian
_FORMAT = 3007000
_MASK = (1 << 32) - 1

_Sums = tuple[int, int]


class LogFrames(NamedTuple):
    """What a log has for the pages of its file."""

    offsets: Mapping[int, int] = {}  # of the last content of each page, by page number
    page_size: int = 0  # 0: not known, as the log is empty or has no sound header
    page_count: int = 0  # of the file after the last transaction that counts; 0: as it is
    has_lost_header: bool = False  # the log is not empty, but without a sound header
    lost_commits: int = 0  # transactions that end behind a damaged frame


def read_frames(descriptor: int, size: int) -> LogFrames:
    """Return what the log with this descriptor, of *size* bytes, has. Blocks."""
    header = os.pread(descriptor, _HEADER.size, 0)
    if not size:
        return LogFrames()
    if len(header) < _HEADER.size:
        return LogFrames(has_lost_header=any(header))
    magic, form, page_size, _, *salts, one, two = _HEADER.unpack(header)
    order = "big" if magic & 1 else "little"
    sums = _add((0, 0), header[:24], order)
    is_known = magic & ~1 == _MAGIC and form == _FORMAT and page_size in PAGE_SIZES
    if not is_known or sums != (one, two):
        return LogFrames(has_lost_header=any(header))
    offsets: dict[int, int] = {}
    waiting: dict[int, int] = {}
    count = lost = 0
    is_broken = is_torn = False
    for at in range(_HEADER.size, size - page_size - _FRAME.size + 1, page_size + _FRAME.size):
        frame = os.pread(descriptor, _FRAME.size + page_size, at)
        if len(frame) < _FRAME.size + page_size:
            break
        number, pages, *found, one, two = _FRAME.unpack_from(frame)
        sums = _add(_add(sums, frame[:8], order), frame[_FRAME.size :], order)
        is_sound = found == salts and sums == (one, two) and number > 0
        sums = one, two  # to find out whether the next frame follows this one
        if not (is_sound or is_broken):
            is_broken, is_torn = True, not (found == salts and pages > 0)
        if is_broken:
            lost += is_sound and pages > 0
            continue
        waiting[number] = at + _FRAME.size
        if pages:
            offsets |= waiting
            waiting, count = {}, pages
    kept = {number: at for number, at in offsets.items() if number <= count}
    return LogFrames(kept, page_size, count, lost_commits=0 if lost == 1 and is_torn else lost)


def _add(sums: _Sums, content: bytes, order: str) -> _Sums:
    """Return the checksum *sums* after *content*, which has a multiple of 8 bytes."""
    words = memoryview(content).cast("I")
    if order != sys.byteorder:
        words = memoryview(
            struct.pack(f"<{len(words)}I", *struct.unpack(f">{len(words)}I", content))
        )
        words = words.cast("I")
    one, two = sums
    for first, second in zip(words[::2], words[1::2], strict=True):
        one = (one + first + two) & _MASK
        two = (two + second + one) & _MASK
    return one, two
