"""Error codes of every libcpg call, from a preloaded fake library, and lifetimes of handles."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.places import PROGRAMS

OK, TRY_AGAIN = 1, 6
# The values of corosync/corotypes.h, and an unknown one.
CODES = [*range(2, 29), 30, 100, 77]
MEANING = {2: "Disconnected", 6: "TryAgain", 9: "Disconnected", 16: "Interrupted"}
RESULTS = {
    "cpg_join": None,
    "cpg_leave": None,
    "cpg_mcast_joined": None,
    "cpg_dispatch": True,
    "cpg_local_get": 3,
    "cpg_max_atomic_msgsize_get": 1000,
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the fake libcpg."""
    path = tmp_path_factory.mktemp("fake") / "libcpg.so"
    flags = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *flags, "-o", path, PROGRAMS / "libcpg.c"], check=True)
    return path


def run(library: Path, *what: object) -> Any:
    """Return the result of a function of ``failing_cpg``, run in a child; stderr must be empty."""
    preloaded = [*os.environ.get("LD_PRELOAD", "").split(":"), str(library)]
    result = subprocess.run(
        [sys.executable, "-m", "tests.fakes.programs.failing_cpg", json.dumps(what)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "LD_PRELOAD": ":".join(filter(None, preloaded))},
    )
    assert (result.returncode, result.stderr) == (0, "")
    return json.loads(result.stdout)


def test_each_status_of_each_call_gets_its_exception(library: Path) -> None:
    outcomes = run(library, "statuses", [OK, *CODES])
    assert {name: found[0] for name, found in outcomes.items()} == RESULTS
    for name, (_, *failures) in outcomes.items():
        for code, failure in zip(CODES, failures, strict=True):
            if name == "cpg_dispatch" and code == TRY_AGAIN:
                assert failure is False  # no event is pending
                continue
            *facts, text = failure
            assert facts == [MEANING.get(code, "ClusterError"), name, code]
            assert text.startswith(f"{name}: ")
            assert text.endswith(f" (code {code})")


def test_a_failed_connect_leaves_no_handle(library: Path) -> None:
    found = run(library, "connecting", CODES)
    for code, (connect, fileno), finalized in zip(CODES, found[::2], found[1::2], strict=True):
        assert connect[:3] == [MEANING.get(code, "ClusterError"), "cpg_initialize", code]
        assert fileno == ["ValueError", "not connected"]
        assert finalized == 0


def test_each_handle_is_finalized_once(library: Path) -> None:
    found = run(library, "lifetime")
    assert found["again"][0] == "ValueError"
    assert {failure[0] for failure in found["closed"]} == {"ValueError"}
    assert {tuple(failure) for failure in found["fresh"]} == {("ValueError", "not connected")}
    # Closed twice; dropped without close; connected, but without a descriptor.
    assert found["counts"] == [1, 2, 3]
    assert found["half"][:3] == ["Disconnected", "cpg_fd_get", 9]


def test_a_dispatch_distinguishes_an_event_from_a_lost_connection(library: Path) -> None:
    called, seen, fragment, failed, status, hung_up, lost = run(library, "dispatching")
    assert called is True
    assert seen[:1] == [[[0xFFFFFFFF, 7], "message"]]
    assert fragment is True
    assert failed == ["KeyboardInterrupt", "of the sink"]
    assert status[:3] == ["Disconnected", "cpg_dispatch", 2]
    assert hung_up[0] == lost[0] == "Disconnected"


def test_a_message_is_refused_before_libqb_would_wait_for_a_read(library: Path) -> None:
    outcomes, after = run(library, "unread", 1000)
    accepted = outcomes.index(next(filter(None, outcomes)))
    assert accepted >= 32
    for refused in outcomes[accepted:]:
        assert refused[:3] == ["TryAgain", "cpg_mcast_joined", TRY_AGAIN]
    assert after is None


def test_a_group_name_fits_or_is_refused(library: Path) -> None:
    fits, too_long, with_nul = run(library, "names")
    assert fits is None
    assert too_long[0] == with_nul[0] == "ValueError"
