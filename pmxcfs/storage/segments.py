"""Reading the journal's segments: headers, records, and where the sound records end.

All bytes are untrusted, since a crash, a damaged device or another program may have written them:
whatever a file holds, the answer is a verdict and never an exception. Nothing here writes.
Contract: docs/spec/storage.md, "Journal". Layouts: docs/formats.md, "The journal".
"""

import contextlib
import os
import re
import stat
import struct
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from zstandard import ZstdDecompressor, ZstdError

from pmxcfs.host.directories import opened
from pmxcfs.host.os_errors import reason_of
from pmxcfs.storage._journal import FRAME_SIZE, crc32c, is_zero, search, split
from pmxcfs.storage.history_index import without_index
from pmxcfs.storage.records import BadRecord, Record, decode
from pmxcfs.storage.sqlite_errors import translated
from pmxcfs.storage.staging import forget_staged, read_staged

DIRECTORY_NAME = "journal"  # in the state directory
HEADER_SIZE = 64  # bytes
MAX_SEGMENT = 128 << 20  # bytes; a file that is larger is read up to here
HISTORY = 1  # flag: rewritten, behind the database's position; never replayed
COMPRESSED = 2  # flag: what follows the header is one zstd frame of the records
INDEXED = 4  # flag: an index ends the file (``history_index``)
WITH_PRIVATE = 8  # flag: what private files hold is to stay when it becomes history
_MAGIC = b"pmxcfs\0J"
_FORMAT = 1
_KNOWN_FLAGS = HISTORY | COMPRESSED | INDEXED | WITH_PRIVATE
_HEADER = struct.Struct("<8sII16sQQ12sI")
_RESERVED = bytes(12)
_NAME = re.compile(r"([0-9a-f]{16})\.log")
_FAR = 1 << 32  # records that a damaged place can hide at most
_MAX_SEQUENCE = (1 << 64) - 1
_MAX_WINDOW = 1 << 27  # bytes that a decompressor may keep, however large a frame says
_PART = 1 << 12  # bytes that are decompressed at once


class Verdict(Enum):
    """What is behind the last sound record of a segment, or why it has none."""

    WHOLE = "nothing follows the last record"
    RESERVED = "only reserved space follows the last record"
    DAMAGED = "bytes that are no record follow"
    FOREIGN = "it is not a segment"
    NEWER = "a later version of pmxcfs has written it"
    UNREADABLE = "it can't be read"


class Header(NamedTuple):
    """What the first 64 bytes of a segment say."""

    lineage: bytes  # 16 bytes
    first: int  # sequence number of its first record
    version: int  # of the tree before that record
    flags: int = 0

    @property
    def is_history(self) -> bool:
        """Whether no start needs it any more; such a segment is not replayed."""
        return bool(self.flags & HISTORY)

    @property
    def keeps_private(self) -> bool:
        """Whether what private files hold stays in the history."""
        return bool(self.flags & WITH_PRIVATE)

    @property
    def is_compressed(self) -> bool:
        """Whether the records are compressed."""
        return bool(self.flags & COMPRESSED)


class Located(NamedTuple):
    """A record and its place; in a compressed segment *offset* is that before compression."""

    offset: int  # of its frame in the segment
    sequence: int
    record: Record


class Segment(NamedTuple):
    """A segment that was read."""

    path: Path
    header: Header | None  # None if the verdict is FOREIGN, NEWER or UNREADABLE
    records: list[Located]
    end: int  # offset of the first byte that belongs to no sound record
    verdict: Verdict
    reason: str  # more about the verdict; may be empty
    content: bytes  # header and records, not compressed

    @property
    def next_sequence(self) -> int:
        """The number of the record that would follow; 0 without a header."""
        return self.header.first + len(self.records) if self.header else 0

    @property
    def is_unused(self) -> bool:
        """Whether a start or a power cut has left it without any record."""
        if self.header is None:
            return self.verdict is Verdict.FOREIGN and is_zero(self.content, 0)
        return not self.records and self.later() is None

    def later(self) -> tuple[int, int] | None:
        """Return offset and sequence number of the first sound record behind the end, if any."""
        if self.header is None:
            return None
        lowest = self.next_sequence
        return search(self.content, self.end, lowest, min(lowest + _FAR, _MAX_SEQUENCE))

    def raw(self, first: int = 0) -> bytes:
        """Return the frames of the sound records that have number *first* or a higher one."""
        offsets = [located.offset for located in self.records if located.sequence >= first]
        return self.content[offsets[0] : self.end] if offsets else b""


class Place(NamedTuple):
    """A segment whose header was read, but not its records."""

    path: Path
    first: int  # sequence number, from the file's name
    size: int  # bytes
    header: Header | None
    verdict: Verdict  # WHOLE if the header is sound, whatever follows
    reason: str

    def read(self) -> Segment:
        """Read the whole segment. Blocks."""
        return read(self.path)


class Scan(NamedTuple):
    """The content of a journal's directory."""

    segments: tuple[Place, ...]  # by rising sequence number
    foreign: tuple[Path, ...]  # files with other names

    def next_sequence(self) -> int:
        """Return the lowest number that is above those of all records. Blocks: reads the last one.

        A new journal that begins there never has a file in its way.
        """
        sequence = 1
        for place in reversed(self.segments):
            if place.header is not None:
                segment = place.read()
                later = segment.later()
                sequence = max(sequence, segment.next_sequence, later[1] + 1 if later else 0)
                break
        taken = {place.first: place for place in self.segments}
        while sequence in taken and not taken[sequence].read().is_unused:
            sequence += 1
        return sequence


def name_of(first: int) -> str:
    """Return the name of the segment whose first record has number *first*."""
    return f"{first:016x}.log"


def encode_header(header: Header) -> bytes:
    """Return the first bytes of a segment."""
    lineage, first, version, flags = header
    data = _HEADER.pack(_MAGIC, _FORMAT, flags, lineage, first, version, _RESERVED, 0)[:-4]
    return data + crc32c(data).to_bytes(4, "little")


def scan(directory: Path) -> Scan:
    """List the segments in *directory* and read their headers. Blocks.

    A missing directory has no segments. Raises StoreError if the directory can't be read.
    """
    with translated(directory, "read"):
        try:
            names = sorted(os.listdir(directory))
        except FileNotFoundError:
            names = []
    segments, foreign = [], []
    for name in names:
        path, match = directory / name, _NAME.fullmatch(name)
        if match:
            segments.append(read_place(path, int(match[1], 16)))
        else:
            foreign.append(path)
    return Scan(tuple(segments), tuple(foreign))


def read(path: Path) -> Segment:
    """Read a segment. Blocks; at most MAX_SEGMENT bytes are read. Raises nothing of the file."""
    try:
        content, size = _whole(path)
    except OSError as error:
        return Segment(path, None, [], 0, Verdict.UNREADABLE, reason_of(error), b"")
    header, verdict, reason = _check_header(path, content)
    if header is None:
        return Segment(path, None, [], 0, verdict, reason, content)
    return _read_records(path, header, content, size)


def read_bodies(path: Path) -> tuple[Header | None, bytes, list[tuple[int, int]]]:
    """Read a segment, but do not decode its records: header, content, bounds of their bodies.

    Blocks. Raises nothing of the file.
    """
    try:
        content = content_of(path)
    except OSError:
        return None, b"", []
    header, _, _ = _check_header(path, content)
    if header is None:
        return None, b"", []
    content, _ = _records_in(header, content)
    bounds, _ = split(content, HEADER_SIZE, header.first)
    return header, content, bounds


def content_of(path: Path) -> bytes:
    """Return a segment's bytes, with the records that are staged for it. Blocks. Raises OSError."""
    return _whole(path)[0]


def _whole(path: Path) -> tuple[bytes, int]:
    """Return a segment's bytes, with what is staged for it, and the file's size. Raises OSError."""
    staged = read_staged(path.parent)
    content, size = _content_of(path, MAX_SEGMENT)
    header, _, _ = _check_header(path, content)
    if header is not None and not header.is_history:
        for found in staged:
            content = found.merged(
                content, start=HEADER_SIZE, lineage=header.lineage, first=header.first
            )
    return content, size


def absorb_staged(directory: Path) -> None:
    """Write what is staged for the journal in *directory* into its segment, and forget it.

    Blocks. Raises OSError; nothing is forgotten then.
    """
    for staged in read_staged(directory):
        path = directory / name_of(staged.first)
        with contextlib.suppress(FileNotFoundError):
            content = content_of(path)
            if content != _content_of(path, MAX_SEGMENT)[0]:
                with path.open("r+b") as file:
                    file.seek(staged.offset)
                    file.write(content[staged.offset :])
    forget_staged(directory)


def _records_in(header: Header, content: bytes) -> tuple[bytes, str]:
    """Return header and records without compression; if that ends early, also the reason why."""
    if not header.is_compressed:
        return content, ""
    is_indexed = header.flags & INDEXED
    compressed = without_index(content, HEADER_SIZE) if is_indexed else content[HEADER_SIZE:]
    return _decompressed(content[:HEADER_SIZE], compressed)


def _read_records(path: Path, header: Header, content: bytes, size: int) -> Segment:
    """Read the records behind a sound header; the file has *size* bytes."""
    verdict = Verdict.WHOLE
    is_cut = size > len(content)
    content, failure = _records_in(header, content)
    if is_cut and not header.is_compressed:
        failure = f"it has more than {MAX_SEGMENT} bytes"
    bounds, end = split(content, HEADER_SIZE, header.first)
    records, reason = _decoded(content, bounds, header.first)
    if len(records) < len(bounds):
        end = bounds[len(records)][0] - FRAME_SIZE
        verdict = Verdict.DAMAGED
    elif failure:
        verdict, reason = Verdict.DAMAGED, failure
    elif end < len(content):
        verdict = Verdict.RESERVED if is_zero(content, end) else Verdict.DAMAGED
    return Segment(path, header, records, end, verdict, reason, content)


def _decoded(
    content: bytes, bounds: list[tuple[int, int]], sequence: int
) -> tuple[list[Located], str]:
    """Decode records up to the first that can't be decoded; return also the reason why not."""
    records: list[Located] = []
    for start, end in bounds:
        try:
            record = decode(content[start:end])
        except BadRecord as error:
            return records, f"record {sequence} can't be decoded: {error}"
        records.append(Located(start - FRAME_SIZE, sequence, record))
        sequence += 1
    return records, ""


def _decompressed(header: bytes, compressed: bytes) -> tuple[bytes, str]:
    """Return *header* and decompressed records; if that ends early, also the reason why.

    A part of the input is small, as it can become 32,768 times as much.
    """
    parts, size = [header], 0
    decompressor = ZstdDecompressor(max_window_size=_MAX_WINDOW).decompressobj()
    try:
        for start in range(0, len(compressed), _PART):
            part = decompressor.decompress(compressed[start : start + _PART])
            size += len(part)
            if size >= MAX_SEGMENT:
                parts.append(part[: len(part) + MAX_SEGMENT - size])
                return b"".join(parts), f"it has more than {MAX_SEGMENT} bytes"
            parts.append(part)
            if decompressor.eof:
                break
    except ZstdError as error:
        return b"".join(parts), f"it can't be decompressed: {error}"
    return b"".join(parts), "" if decompressor.eof else "its end is missing"


def read_place(path: Path, first: int = 0) -> Place:
    """Read the header of a segment. Blocks. Raises nothing of the file."""
    try:
        content, size = _content_of(path, HEADER_SIZE)
    except OSError as error:
        return Place(path, first, 0, None, Verdict.UNREADABLE, reason_of(error))
    return Place(path, first, size, *_check_header(path, content))


def _content_of(path: Path, limit: int) -> tuple[bytes, int]:
    """Return the first *limit* bytes of a regular file, and its size. Raises OSError."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe would block
    with opened(os.open(path, flags)) as descriptor:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is not a regular file")
        wanted, chunks = min(limit, status.st_size), []
        while wanted > 0 and (chunk := os.read(descriptor, wanted)):
            chunks.append(chunk)
            wanted -= len(chunk)
    return b"".join(chunks), status.st_size


def _check_header(path: Path, content: bytes) -> tuple[Header | None, Verdict, str]:
    """Return the header at the start of *content*, or None and the reason."""
    if len(content) < HEADER_SIZE or not content.startswith(_MAGIC):
        return None, Verdict.FOREIGN, "it has no header"
    fields = _HEADER.unpack_from(content)
    if fields[-1] != crc32c(content[: HEADER_SIZE - 4]):
        return None, Verdict.FOREIGN, "its header is damaged"
    _, version, flags, lineage, first, tree_version, reserved, _ = fields
    if version != _FORMAT or flags & ~_KNOWN_FLAGS or reserved != _RESERVED:
        return None, Verdict.NEWER, f"its format is {version}, with flags {flags}"
    if path.name != name_of(first):
        return None, Verdict.FOREIGN, f"it was {name_of(first)}"
    return Header(lineage, first, tree_version, flags), Verdict.WHOLE, ""
