"""The rules that tests/conftest.py enforces, on a file of tests that break them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import missing_for_corosync
from tests.places import ROOT

OFFENDERS = """
import logging
import pytest

def test_silent(): pass

def test_undeclared(): logging.getLogger("pmxcfs.fuse").warning("surprise")

@pytest.mark.expect_log("announced")
def test_declared(): logging.getLogger("pmxcfs.fuse").warning("as announced")

def test_declared_late(expect_log):
    expect_log("announced")
    logging.getLogger("pmxcfs.fuse").error("as announced")

@pytest.mark.expect_log("announced")
def test_declared_only(): pass

@pytest.mark.needs_fuse
def test_needs_fuse(): pass

def test_skipped(): pytest.skip("too lazy")

def test_leak(): open(__file__)

def test_information(): logging.getLogger("pmxcfs.fuse").info("all is well")
"""


@pytest.fixture(scope="module")
def offenders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("offenders") / "test_offenders.py"
    path.write_text(OFFENDERS)
    return path


def outcomes(path: Path, **environment: str) -> dict[str, set[str]]:
    """Run a file of tests under tests/conftest.py; return the reported outcomes by test name."""
    settings = [
        "-c",
        str(ROOT / "pyproject.toml"),
        f"--rootdir={path.parent}",
        "-p",
        "no:cacheprovider",
    ]
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", *settings, "-rA", str(path)]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=path.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    found: dict[str, set[str]] = {}
    for outcome, name in re.findall(
        r"^(PASSED|FAILED|ERROR|SKIPPED)\b.*?(test_\w+)\b(?!\.py)", result.stdout, re.MULTILINE
    ):
        found.setdefault(name, set()).add(outcome)
    assert found, result.stdout + result.stderr
    return found


def test_undeclared_logs_missing_logs_and_leaks_fail_a_test(offenders: Path) -> None:
    found = outcomes(offenders)
    clean = ("test_silent", "test_declared", "test_declared_late", "test_information")
    assert {name for name, outcome in found.items() if outcome == {"PASSED"}} >= set(clean)
    assert "ERROR" in found["test_undeclared"]
    assert "ERROR" in found["test_declared_only"]
    assert found["test_leak"] & {"ERROR", "FAILED"}


def test_a_skip_fails_where_capabilities_are_required(offenders: Path) -> None:
    assert "test_skipped" not in outcomes(offenders)  # pytest reports a skip by file and line
    assert outcomes(offenders, PMXCFS_REQUIRE="fuse")["test_skipped"] == {"FAILED"}


def test_each_service_that_is_unpacked_for_the_nodes_is_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(missing_for_corosync.__globals__, "missing_for_fuse", str)
    monkeypatch.setenv("PATH", "/nonexistent")
    (line,) = re.findall(r"^UNPACKED := (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for_nodes = [package for package in line.split() if package.startswith("corosync")]
    assert for_nodes
    assert missing_for_corosync().startswith(f"not installed: {', '.join(for_nodes)}, ")
