"""``export`` and ``import`` in directories whose owner exchanges them for symbolic links."""

import contextlib
import itertools
import os
import stat
from pathlib import Path

import pytest

from pmxcfs.cli import offline
from pmxcfs.errors import PmxcfsError
from tests.fakes.doubles.attacker import Attacker

MOST_STEPS = 500
ANOTHER_USER = 4242


@pytest.fixture(autouse=True)
def _as_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attacker's links are not this user's, also if the tests don't run as root."""
    monkeypatch.setattr(os, "geteuid", lambda: ANOTHER_USER)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory to import, and what an export of it makes."""
    directory = tmp_path / "source"
    (directory / "priv" / "acme").mkdir(parents=True)
    (directory / "priv" / "key").write_text("secret")
    (directory / "priv" / "acme" / "account").write_text("secret")
    (directory / "z").write_text("public")
    return directory


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A directory of root that the attacker wants to be changed or read."""
    directory = tmp_path / "victim"
    (directory / "acme").mkdir(parents=True)
    (directory / "shadow").write_text("of root")
    directory.chmod(0o711)
    return directory


def state_of(directory: Path) -> list[tuple[str, int, int]]:
    paths = [directory, *sorted(directory.rglob("*"))]
    return [(str(path), path.stat().st_mode, path.stat().st_mtime_ns) for path in paths]


@pytest.mark.parametrize("attacked", [".", "priv", "priv/acme"])
def test_an_export_never_follows_a_link_of_another_user(
    source: Path, victim: Path, tmp_path: Path, attacked: str
) -> None:
    database = tmp_path / "config.db"
    offline.import_(source, database)
    before = state_of(victim)
    for step in itertools.count(1):
        target = tmp_path / f"export{step}" / "out"
        target.mkdir(parents=True)
        attacker = Attacker(target / attacked, victim, step=step)
        with attacker.acting(), contextlib.suppress(OSError, PmxcfsError):
            offline.export(database, target)
        assert state_of(victim) == before
        if not attacker.has_acted:
            break
    assert 5 < step < MOST_STEPS
    assert (target / "priv" / "acme" / "account").read_text() == "secret"
    assert stat.S_IMODE((target / "priv").stat().st_mode) == 0o700


@pytest.mark.parametrize("attacked", ["priv", "priv/acme"])
def test_an_import_never_follows_a_link_of_another_user(
    source: Path, victim: Path, tmp_path: Path, attacked: str
) -> None:
    (victim / "account").write_text("of root")
    place = source / attacked
    for step in itertools.count(1):
        database = tmp_path / f"config{step}.db"
        attacker = Attacker(place, victim, step=step)
        with attacker.acting(), contextlib.suppress(OSError, PmxcfsError):
            offline.import_(source, database)
        if not attacker.has_acted:
            break
        place.unlink()
        os.rename(place.with_name("moved-away"), place)
        if database.exists():
            offline.export(database, tmp_path / f"out{step}")
            found = [path for path in (tmp_path / f"out{step}").rglob("*") if path.is_file()]
            assert all(path.read_text() != "of root" for path in found)
    assert 5 < step < MOST_STEPS
