"""Fixtures with labs, and the removal of lab processes that earlier runs have left."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import sweep
from tests.cluster.lab import Lab
from tests.cluster.together import Cluster


@pytest.fixture(scope="session", autouse=True)
def _sweep_labs() -> Iterator[None]:
    """Kill the processes that killed runs have left; assert that this run leaves none."""
    sweep.end(*sweep.stale())
    yield
    left = sweep.mine()
    sweep.end(*left)
    assert not left, f"processes of a lab were left: {left}"
    assert not sweep.wait_for_end(sweep.stale), "processes of an earlier run do not end"


@pytest.fixture(scope="module")
def _booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("lab")) as lab:
        lab.start_corosync()
        yield lab


@pytest.fixture
def quorate_lab(_booted: Lab) -> Lab:
    """Three nodes with quorate corosyncs; the faults of earlier tests are undone."""
    _booted.heal()
    for node in _booted.nodes:
        node.corosync.thaw()
        if not node.corosync.is_running:
            node.corosync.start()
    _booted.wait_for_members(*_booted.nodes)
    return _booted


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """Three nodes on which nothing runs yet."""
    with Lab(tmp_path) as lab:
        yield lab


@pytest.fixture(scope="module")
def _whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.start()
        yield cluster
        cluster.mend()
        cluster.finish()


@pytest.fixture
def cluster(_whole: Cluster) -> Cluster:
    """A synced cluster of three nodes; the faults of earlier tests are undone."""
    _whole.mend()
    return _whole


@pytest.fixture
def idle_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of three nodes on which nothing runs yet."""
    with Cluster(tmp_path) as cluster:
        yield cluster
