"""A directory that counts as one in memory, for what the journal stages there."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmxcfs.host.directories import opened
from pmxcfs.storage import staging
from pmxcfs.storage.segments import read_place
from pmxcfs.storage.staging import StagingFile


@contextlib.contextmanager
def in_memory(path: Path) -> Iterator[Path]:
    """Have this process stage records in the directory *path*, which is made when it is used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staging, "HOMES", (path,))
        patch.setattr(staging, "OWNER", os.geteuid())
        patch.setattr(staging, "is_in_memory", lambda descriptor: True)
        yield path


def file_for(journal: Path) -> Path:
    """Return the path of the file for the journal in a directory, in the first place."""
    return staging.HOMES[0] / staging.name_of(journal.stat())


def stage_tail(segment: Path, offset: int) -> Path:
    """Move what a segment holds from *offset* on to memory, as a killed daemon leaves it.

    Return the path of the file in memory.
    """
    header = read_place(segment).header
    assert header is not None
    content = segment.read_bytes()
    os.truncate(segment, offset)
    with opened(os.open(segment.parent, os.O_RDONLY)) as directory:
        file = StagingFile(directory)
        frames = content[offset:]
        assert file.begin(frames, lineage=header.lineage, first=header.first, offset=offset)
        file.close()
    return file_for(segment.parent)
