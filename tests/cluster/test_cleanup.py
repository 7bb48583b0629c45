"""The end of a lab leaves no process, mount or device, whatever has ended it.

The tests have a module of their own, so that no other lab of this process exists.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.cluster import sweep
from tests.cluster.agent import Agent
from tests.cluster.lab import Lab
from tests.cluster.node import python_path
from tests.cluster.together import Cluster

pytestmark = pytest.mark.needs_corosync

NODES = 3


def traces(directory: Path) -> Iterator[str]:
    """Yield all traces of this process's labs on the machine."""
    for pid in sweep.mine():
        yield f"process {pid}"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        if str(directory) in line or "/run/layers" in line:
            yield f"mount {line}"
    for device in Path("/sys/class/net").iterdir():
        if device.name == "lab" or device.name.startswith("node"):
            yield f"device {device.name}"
    for number in os.listdir("/proc/self/fd"):
        target = Path(f"/proc/self/fd/{number}")
        if target.is_symlink() and str(target.readlink()).startswith("net:"):
            yield f"namespace {target.readlink()}"


def children(pid: int) -> list[int]:
    """Return the pids of a process's children."""
    return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


@contextlib.contextmanager
def start_abandoned(
    directory: Path, *arguments: str, prefix: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that runs a lab and waits to be killed; a failed block kills it."""
    argv = [*prefix, sys.executable, "-m", "tests.cluster.abandoned", str(directory), *arguments]
    environment = {**os.environ, "PYTHONPATH": python_path()}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment) as tests:
        try:
            assert tests.stdout
            assert tests.stdout.readline() == b"ready\n"
            yield tests
        except BaseException:
            tests.kill()
            raise


def test_nothing_is_left_of_frozen_and_killed_daemons(tmp_path: Path) -> None:
    """One daemon is frozen while a process waits for it, another is killed."""
    with Lab(tmp_path) as lab:
        lab.serve_locally()
        found = list(traces(tmp_path))
        assert len([trace for trace in found if trace.startswith("process")]) >= 3 * NODES
        assert len([trace for trace in found if trace.startswith("namespace")]) == 1
        agents = [Agent(node) for node in lab.nodes]
        lab[1].daemon.freeze()
        agents[0].begin(("put", "file", b"never written"))
        lab[2].daemon.kill()
    for agent in agents:
        agent.close()
    assert list(traces(tmp_path)) == []


def fail_in_lab(directory: Path) -> None:
    with Lab(directory) as lab:
        lab.start_corosync()
        lab.serve_locally()
        raise ZeroDivisionError


def test_nothing_is_left_after_an_exception(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        fail_in_lab(tmp_path)
    assert list(traces(tmp_path)) == []


@pytest.mark.parametrize("kind", [Lab, Cluster])
def test_nothing_is_left_of_a_node_that_does_not_boot(
    kind: type[Lab], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.cluster.network.BITS", 99)
    with pytest.raises(AssertionError, match="node1 does not boot"):
        kind(tmp_path)
    assert list(traces(tmp_path)) == []


FUSECTL = "/sys/fs/fuse/connections"
MOUNTED = f"mountpoint -q {FUSECTL} || mount -t fusectl fusectl {FUSECTL}"
NOT_MOUNTED = f"! mountpoint -q {FUSECTL} || umount --lazy {FUSECTL}"


@pytest.mark.long
@pytest.mark.parametrize("state", [MOUNTED, NOT_MOUNTED])
def test_a_lab_runs_whether_the_machine_has_fusectl_mounted_or_not(
    state: str, tmp_path: Path
) -> None:
    """systemd mounts it; other machines don't have it mounted."""
    script = f'set -e; {state}; exec "$@"'
    prefix = ["unshare", "--mount", "sh", "-c", script, "sh"]
    with start_abandoned(tmp_path, prefix=prefix) as tests:
        owner = sweep.identity(tests.pid)
        nodes = list(sweep.members(lambda found: found == owner))
        mounts = {Path(f"/proc/{pid}/mounts").read_text().count(f" {FUSECTL} ") for pid in nodes}
        tests.kill()
    assert mounts == {1}
    assert sweep.wait_for_end(lambda: list(sweep.members(lambda found: found == owner))) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_of_tests_that_are_killed(tmp_path: Path, number: signal.Signals) -> None:
    with start_abandoned(tmp_path) as tests:
        owner = sweep.identity(tests.pid)

        def left() -> list[int]:
            return list(sweep.members(lambda found: found == owner))

        assert left()
        tests.send_signal(number)
    assert sweep.wait_for_end(left) == []


def test_processes_that_killed_tests_have_left_are_swept(tmp_path: Path) -> None:
    """Also nodes whose first process is frozen."""
    with start_abandoned(tmp_path, "wedge") as tests:
        owner = sweep.identity(tests.pid)

        def left() -> list[int]:
            return list(sweep.members(lambda found: found == owner))

        assert not set(left()) & set(sweep.stale())
        tests.kill()
        tests.wait()
        assert set(left()) <= set(sweep.stale())
        assert left()
    sweep.end(*left())
    assert sweep.wait_for_end(left) == []


def test_labs_of_tests_in_a_container_are_not_swept(tmp_path: Path) -> None:
    """Their owner has a number of its own pid namespace."""
    prefix = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with start_abandoned(tmp_path, prefix=prefix) as container:
        (tests,) = children(container.pid)
        namespace = os.readlink(f"/proc/{tests}/ns/pid")

        def found() -> list[int]:
            return list(sweep.members(lambda owner: owner.endswith(f":{namespace}")))

        assert len(found()) > NODES
        assert not set(found()) & set(sweep.stale())
        container.kill()
    assert sweep.wait_for_end(found) == []
