"""The .deb files that tests install: the product, an upgrade of it, a stand-in for pve-cluster."""

import shutil
import subprocess
from pathlib import Path

from tests.places import ROOT

STANDIN = Path(__file__).parent / "standin"
HIGHER = "99"  # a version


def ours() -> Path:
    """Return the package that ``make deb`` has built."""
    (found,) = (ROOT / "build" / "deb").glob("pmxcfs_*_*.deb")
    return found


def upgrade(work: Path) -> Path:
    """Build the product's package with a higher version."""
    tree = work / "upgrade"
    subprocess.run(["dpkg-deb", "--raw-extract", ours(), tree], check=True)
    control = tree / "DEBIAN" / "control"
    lines = control.read_text().splitlines(keepends=True)
    control.write_text(
        "".join(f"Version: {HIGHER}\n" if line.startswith("Version:") else line for line in lines)
    )
    return packed(tree, work / f"pmxcfs_{HIGHER}.deb")


def original(work: Path) -> Path:
    """Build a stand-in for pve-cluster, with the files that the product's package diverts."""
    tree = work / "pve-cluster"
    shutil.copytree(STANDIN, tree)
    subprocess.run(["gzip", "-n", tree / "usr/share/man/man8/pmxcfs.8"], check=True)
    sums = subprocess.run(
        "find usr lib -type f | xargs md5sum",
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
