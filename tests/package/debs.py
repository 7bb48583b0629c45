"""The .deb files that tests install: the product, an upgrade of it, a stand-in for pve-cluster."""

import shutil
import subprocess
from pathlib import Path

from tests.places import ROOT

STANDIN = Path(__file__).parent / "standin"
HIGHER = "99"  # a version
# Where `make deb` and `make deb-trixie` build.
BUILT = {"bookworm": ROOT / "build" / "deb", "trixie": ROOT / "build" / "deb-trixie"}


def ours(release: str) -> Path:
    """Return the product's package for a release."""
    (found,) = BUILT[release].glob("pmxcfs_*_*.deb")
    return found


def units_of(release: str) -> str:
    """Return where packages of a release have their units, without a leading slash."""
    return "lib/systemd/system" if release == "bookworm" else "usr/lib/systemd/system"


def upgrade(work: Path, release: str) -> Path:
    """Build the product's package with a higher version."""
    tree = work / "upgrade"
    subprocess.run(["dpkg-deb", "--raw-extract", ours(release), tree], check=True)
    control = tree / "DEBIAN" / "control"
    lines = control.read_text().splitlines(keepends=True)
    control.write_text(
        "".join(f"Version: {HIGHER}\n" if line.startswith("Version:") else line for line in lines)
    )
    return packed(tree, work / f"pmxcfs_{HIGHER}.deb")


def original(work: Path, release: str) -> Path:
    """Build a stand-in for pve-cluster, with the files that the product's package diverts."""
    tree = work / "pve-cluster"
    shutil.copytree(STANDIN, tree)
    subprocess.run(["gzip", "-n", tree / "usr/share/man/man8/pmxcfs.8"], check=True)
    units = tree / "usr" / "lib" / "systemd" / "system"
    if units != tree / units_of(release):
        (tree / units_of(release)).parent.mkdir(parents=True)
        units.rename(tree / units_of(release))
    sums = subprocess.run(
        "find * -path DEBIAN -prune -o -type f -print | xargs md5sum",
        cwd=tree,
        shell=True,
        stdout=subprocess.PIPE,
        check=True,
    )
    (tree / "DEBIAN" / "md5sums").write_bytes(sums.stdout)
    return packed(tree, work / "pve-cluster.deb")


def packed(tree: Path, package: Path) -> Path:
    """Build a .deb file from a tree."""
    build = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(package)]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    return package
