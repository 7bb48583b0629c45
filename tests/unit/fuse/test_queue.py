"""The queues of FUSE over io_uring on a broken kernel, which a preloaded liburing stands for."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.places import PROGRAMS

pytest.importorskip("pmxcfs.fuse._queue", reason="built without liburing")

PATIENCE = 60.0  # seconds beyond those of the run


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the fake liburing."""
    path = tmp_path_factory.mktemp("fake") / "liburing.so"
    flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *flags, "-o", path, PROGRAMS / "liburing.c"], check=True)
    return path


def test_whatever_a_broken_kernel_completes_each_slot_is_given_back_once(
    library: Path, seed: int, report: Callable[[object], None]
) -> None:
    """For about a second; for PMXCFS_FUZZ_SECONDS, if that is set."""
    seconds = float(os.environ.get("PMXCFS_FUZZ_SECONDS") or 1)
    preloaded = [*os.environ.get("LD_PRELOAD", "").split(":"), str(library)]
    result = subprocess.run(
        [sys.executable, "-m", "tests.fakes.programs.broken_kernel", str(seed), str(seconds)],
        capture_output=True,
        text=True,
        timeout=seconds + PATIENCE,
        env={**os.environ, "LD_PRELOAD": ":".join(filter(None, preloaded))},
    )
    assert (result.returncode, result.stderr) == (0, ""), seed
    found = json.loads(result.stdout)
    assert found.pop("failures") == [], seed
    if seconds > 1:
        report(f"seed {seed}: {found} in {seconds:.0f} s")
    assert found["_hand_over"] > found["sound"] > found["done"] > 0
    assert found["histories"] >= found["exact"] > 0
