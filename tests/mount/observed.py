"""Observations of a daemon beside its mount: versions, published content, status files."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pmxcfs.storage.recovery import inspect
from tests.harness import Daemon


def version(mount: Daemon) -> int:
    """Return the tree's version, which each published change raises by one."""
    return int(mount.control("info")["version"])


@contextmanager
def changes(mount: Daemon, count: int) -> Iterator[None]:
    """Assert that the block publishes exactly *count* changes."""
    before = version(mount)
    yield
    assert version(mount) - before == count


def published(mount: Daemon, path: str) -> bytes | None:
    """Return the content of a file in database and journal, None if there is no such file."""
    entry = inspect(mount.state / "config.db").tree.find(path)
    return None if entry is None else entry.content


def status(mount: Daemon, name: str) -> dict[str, Any]:
    """Return the content of a status file."""
    found: dict[str, Any] = json.loads((mount.path / name).read_bytes())
    return found
