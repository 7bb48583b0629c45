"""Reading a database whose directory can't be written."""

import contextlib
import shutil
from pathlib import Path

from pmxcfs.storage.create import tree_with
from pmxcfs.storage.database import Database, read_tree, whole_batch
from pmxcfs.storage.unwritable import has_log, read_into_memory


def test_what_only_the_log_has_is_read_without_a_file_beside_it(tmp_path: Path) -> None:
    path, copy, scratch = tmp_path / "config.db", tmp_path / "copy.db", tmp_path / "scratch"
    scratch.mkdir()
    database = Database.open(path, now=7)
    try:
        database.save(whole_batch(tree_with("file", b"late", now=8)), None)
        for suffix in ("", "-wal"):
            shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
    finally:
        database.close()
    assert has_log(copy)
    assert not has_log(path)
    memory = read_into_memory(copy, scratch=scratch)
    assert memory is not None
    with contextlib.closing(memory):
        assert [record.data for record in read_tree(memory, copy).records[1:]] == [b"late"]
    assert list(scratch.iterdir()) == []
    assert {p.name for p in tmp_path.glob("copy.db*")} == {"copy.db", "copy.db-wal"}


def test_a_missing_and_an_empty_file_hold_nothing(tmp_path: Path) -> None:
    assert read_into_memory(tmp_path / "missing", scratch=tmp_path) is None
    (tmp_path / "empty").touch()
    assert read_into_memory(tmp_path / "empty", scratch=tmp_path) is None
