"""The copies kept of changes that the tree does not have: what each holds, and which are done.

A copy is the database ``conflicts/TIME.db`` in the state directory, from before a synchronization,
or a part of the journal, ``conflicts/TIME.journal``; a file with ``.json`` behind its name
describes it. Somebody who has dealt with a copy marks it as *done*: both files then move to
``conflicts/done``. Nothing is ever removed.

Threads: no lock is needed. All functions block. Contract: docs/spec/operations.md, "Conflicts".
"""

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pmxcfs.errors import NotFound
from pmxcfs.host.files import (
    make_file,
    make_numbered_file,
    make_private_directory,
    sync_directory,
)

HOME = "conflicts"  # in the state directory
DONE = "done"  # in HOME
FORK, OLDER = "fork", "older"  # reasons for a copy of the database
OTHER_DATABASE, DAMAGE = "other database", "damage"  # reasons for a copy of the journal
INCOMPLETE = "incomplete"  # a reason for a copy of the database, too
MAX_LOGGED_PATHS = 100  # paths that are logged for one copy
_NAME = re.compile(r"[0-9]+\.(db|journal)(\.[0-9]+)?")


class Description(NamedTuple):
    """Why a copy was made, and of which changes. The paths may be private ones."""

    time: int  # seconds since 1970
    reason: str  # one of the constants above, or empty
    replaced: Sequence[str]  # paths of entries that were replaced or removed
    removed: Sequence[str]  # paths of entries that this node had removed, and that are back


class Copy(NamedTuple):
    """A kept copy."""

    path: Path
    is_done: bool
    description: Description

    @property
    def name(self) -> str:
        """The name that the commands use."""
        return self.path.name

    @property
    def is_journal(self) -> bool:
        """Whether it is a part of a journal; else it is a database."""
        return ".journal" in self.name


def names_to_do(state_directory: Path) -> list[str]:
    """Return the names of the copies that nobody has dealt with, the oldest first.

    An empty list if the directory can't be read.
    """
    with contextlib.suppress(OSError):
        return [path.name for path in _copies_in(state_directory / HOME)]
    return []


def kept_copies(state_directory: Path) -> list[Copy]:
    """Return all copies, those that are done first, the oldest first.

    Raises OSError if *state_directory* is not there, or if it or the copies can't be listed.
    """
    os.listdir(state_directory)  # no copies are not the same as no state directory
    home = state_directory / HOME
    return [
        Copy(path, is_done, _described(path))
        for place, is_done in ((home / DONE, True), (home, False))
        for path in _copies_in(place)
    ]


def find_copy(state_directory: Path, name: str) -> Copy:
    """Return the copy *name*, rather one that is not done. Raises NotFound, OSError."""
    for copy in reversed(kept_copies(state_directory)):
        if copy.name == name:
            return copy
    raise NotFound(f"no copy {name} in {state_directory / HOME}: see pmxcfs conflicts list")


def describe_copy(copy: Path, description: Description) -> None:
    """Write the description of the file *copy*. Raises OSError."""
    path = _beside(copy)
    make_file(path)
    try:
        path.write_text(json.dumps(description._asdict()))
    except OSError:
        path.unlink()
        raise


def log_paths(logger: logging.Logger, fate: str, names: Iterable[str]) -> None:
    """Log what has become of each path in *names*, for the first paths."""
    paths = sorted(names)
    for path in paths[:MAX_LOGGED_PATHS]:
        logger.warning("%s: %s", fate, path)
    if len(paths) > MAX_LOGGED_PATHS:
        logger.warning("%s: %d more paths", fate, len(paths) - MAX_LOGGED_PATHS)


def mark_done(copy: Copy) -> None:
    """Move *copy* to those that are done. Raises OSError."""
    if copy.is_done:
        return
    done = copy.path.parent / DONE
    make_private_directory(done)
    target = make_numbered_file(done / copy.path.name)  # the clock may have shown that time before
    if (description := _beside(copy.path)).exists():
        description.rename(_beside(target))
    copy.path.rename(target)  # the copy last: without it, it is still to do
    sync_directory(done)
    sync_directory(copy.path.parent)


def _beside(copy: Path) -> Path:
    return copy.with_name(f"{copy.name}.json")


def _copies_in(directory: Path) -> list[Path]:
    """Return the paths of the copies in *directory*, the oldest first. Raises OSError."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return sorted(directory / name for name in names if _NAME.fullmatch(name))


def _described(copy: Path) -> Description:
    """Return the description of *copy*; one without paths if it is missing or damaged."""
    try:
        return _from_data(json.loads(_beside(copy).read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return Description(int(copy.name.partition(".")[0]), "", (), ())


def _from_data(data: Mapping[str, Any]) -> Description:
    paths = [[str(path) for path in data[key]] for key in ("replaced", "removed")]
    return Description(int(data["time"]), str(data["reason"]), *paths)
