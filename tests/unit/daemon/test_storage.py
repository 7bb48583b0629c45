"""Database and journal of a daemon at its start."""

import contextlib
import errno
import threading
from pathlib import Path

import pytest

from pmxcfs.daemon.storage import Storage
from pmxcfs.errors import StoreError
from pmxcfs.messages import Create
from pmxcfs.storage.kept_copies import kept_copies
from pmxcfs.storage.records import encode
from pmxcfs.storage.recovery import inspect
from tests.conftest import ExpectLog
from tests.fakes.data.journals import WRITE
from tests.fakes.doubles.device import device
from tests.fakes.doubles.journals import JournalingNode

OTHER = r"the database is not the one that the journal goes on from, .*; they are kept as .*"


def opened(path: Path, *, now: int = 9) -> Storage:
    return Storage.open(
        path, path.with_name("journal"), now=now, lock=threading.Lock(), scratch=path.parent
    )


def test_no_segment_is_begun_before_what_is_left_over_is_kept(
    tmp_path: Path, expect_log: ExpectLog
) -> None:
    """A second start finds it again, as the journal is as it was."""
    path = tmp_path / "config.db"
    node = JournalingNode(tmp_path / "journal")
    node.change(Create("unsaved"))
    (tmp_path / "conflicts").touch()  # no directory can be made there
    before = node.segment.read_bytes()
    for _ in range(2):
        with contextlib.closing(opened(path)) as storage:
            assert "conflicts" in str(storage.journal.failure)
            with pytest.raises(StoreError):
                storage.journal.make_room(100, version=1, wait=False)
        assert [file.read_bytes() for file in node.directory.iterdir()] == [before]
    found = inspect(path).left_over
    assert found is not None
    assert list(found.paths()) == ["unsaved"]
    with contextlib.closing(opened(path)) as storage:
        (tmp_path / "conflicts").unlink()
        expect_log(OTHER)
        expect_log("changed in the journal only: unsaved")
        storage.journal.make_room(100, version=1)
        assert storage.journal.failure is None
    assert len(kept_copies(tmp_path)) == 1


def test_the_database_is_closed_if_the_journal_fails_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "config.db"
    storage = opened(path)
    storage.journal.make_room(100, version=1)
    storage.journal.append([encode(WRITE)])
    with device() as below:
        below.failures["sync"] = errno.EIO
        with pytest.raises(StoreError):
            storage.close()
    assert not Path(f"{path}-wal").exists()
