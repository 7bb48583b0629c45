"""The build of the package: with Debian's tools, from a clean copy, reproducible."""

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.places import ROOT

pytestmark = [pytest.mark.needs_packaging, pytest.mark.long]


NOBODY = 65534  # uid and gid of an ordinary user
ORDINARY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "nice"]


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a directory of an ordinary user."""
    with tempfile.TemporaryDirectory() as name:
        os.chown(name, NOBODY, NOBODY)
        yield Path(name)


def build(source: Path, **environment: str) -> dict[str, str]:
    """Build from the source package in another directory, as an ordinary user under nice(1).

    Return the checksums of the packages.
    """
    (description,) = (ROOT / "build" / "deb").glob("pmxcfs_*.dsc")
    subprocess.run(["dpkg-source", "--extract", description, source], check=True)
    subprocess.run(["chown", "--recursive", f"{NOBODY}:{NOBODY}", source], check=True)
    command = [*ORDINARY, "dpkg-buildpackage", "--no-sign", "--build=binary"]
    # Only Debian's programs, as on a build machine.
    variables = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEB_BUILD_OPTIONS": "nocheck"}
    variables |= {"HOME": os.devnull, **environment}
    with (source.parent / "log").open("wb") as log:
        subprocess.run(command, cwd=source, env=variables, stdout=log, stderr=log, check=True)
    return sums(source.parent)


def sums(directory: Path) -> dict[str, str]:
    packages = sorted(directory.glob("*.deb"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in packages}


def test_two_builds_are_identical(place: Path, report: Callable[[object], None]) -> None:
    """Builds of other users, in other directories, time zones and umasks.

    Both are without compiler warnings.
    """
    umask = os.umask(0o077)
    try:
        built = build(place / "source", TZ="Pacific/Kiritimati", LC_ALL="C.UTF-8")
    finally:
        os.umask(umask)
    assert len(built) == 2  # the program, and its debug symbols
    assert built == sums(ROOT / "build" / "deb")
    log = (place / "log").read_text().splitlines()
    assert [line for line in log if ".c:" in line and "warning:" in line] == []
    report(built)


def test_the_source_package_has_no_build_products() -> None:
    """The checkout may have build products."""
    (archive,) = (ROOT / "build" / "deb").glob("pmxcfs_*.tar.xz")
    listed = subprocess.run(["tar", "-taf", archive], stdout=subprocess.PIPE, text=True, check=True)
    strange = [
        name
        for name in listed.stdout.splitlines()
        if name.endswith((".so", ".pyc", ".o")) or "__pycache__" in name or "/build/" in name
    ]
    assert strange == []
    assert "pmxcfs/debian/control" in listed.stdout
