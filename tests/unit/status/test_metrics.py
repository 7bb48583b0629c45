"""Metrics: valid names and values, and the age after which a value is not shown."""

import pytest

from pmxcfs.status.metrics import MAX_AGE, MAX_METRICS, MAX_REFUSED, MAX_VALUE, Metrics


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.mark.parametrize(
    "name",
    [
        "pve2-node/node1",
        "pve-node-9.0/node1",
        "pve-node-10/node1",
        "pve2.3-vm/100",
        "pve-vm-9.0/100",
        "pve2-storage/node1/local",
        "pve-storage-9.0/node1/local.lvm_2",
        "pve2-node/...",
        "pve2-node/.a",
    ],
)
def test_names_of_metrics(name: str) -> None:
    seen: list[tuple[str, bytes]] = []
    metrics = Metrics(lambda *what: seen.append(what))
    assert metrics.set(name, b"1:2\0", now=0)
    assert metrics.render(0) == f"{name}:1:2\n".encode()
    assert seen == [(name, b"1:2")]


@pytest.mark.expect_log("is not stored: no metric has such a name")
@pytest.mark.parametrize(
    "name",
    [
        "",
        "pve2-node",
        "pve2-node/",
        "pve2-node/.",
        "pve2-node/..",
        "pve2-node/a/b",
        "pve2-node/a\n",
        "pve2-node/a b",
        "pve2-node/\xe4",
        "pve2-node/../../../etc/cron.d/x",
        "pve2-node//a",
        "/pve2-node/a",
        "pve3-node/a",
        "pve-node-/a",
        "pve-node-../a",
        "pve-node-9.0.0.x/a",
        "pve2x3-vm/100",
        "pve2-vm/100",
        "pve2-storage/node1",
        "pve2-storage/node1/..",
        "pve2-storage/../local",
        "pve2-storage/a/b/c",
        "x" * 1000,
        "\udcff",
    ],
)
def test_other_names_are_not_stored(name: str) -> None:
    metrics = Metrics(lambda name, value: pytest.fail(name))
    assert not metrics.set(name, b"1:2\0", now=0)
    assert metrics.render(0) == b""


@pytest.mark.expect_log("metric pve2-node/a is not stored: its value is not one line of text")
@pytest.mark.parametrize(
    "value",
    [b"", b"1:2", b"1\n2\0", b"1\x7f\0", b"1\0002", b"x" * MAX_VALUE + b"\0"],
    ids=lambda value: repr(value[:8]),
)
def test_values_that_are_not_stored(metrics: Metrics, value: bytes) -> None:
    assert not metrics.set("pve2-node/a", value, now=0)
    assert metrics.revision(0) == 0


def test_values_that_are_stored(metrics: Metrics) -> None:
    for value in (b"\0", b"x" * (MAX_VALUE - 1) + b"\0", b"\xff\0", b"1:2\0\0"):
        assert metrics.set("pve2-node/a", value, now=0)
        data = value.rstrip(b"\0")
        assert metrics.render(0) == b"pve2-node/a:" + data + b"\n"


def test_old_values_are_left_out(metrics: Metrics) -> None:
    metrics.set("pve2-node/a", b"1\0", now=0)
    metrics.set("pve2-node/b", b"2\0", now=1)
    metrics.set("pve2-node/a", b"3\0", now=2)
    revision = metrics.revision(MAX_AGE + 1)
    assert metrics.render(MAX_AGE + 1) == b"pve2-node/b:2\npve2-node/a:3\n"
    assert metrics.revision(MAX_AGE + 1) == revision == 3
    assert metrics.revision(MAX_AGE + 1.5) == 4
    assert metrics.render(MAX_AGE + 1.5) == b"pve2-node/a:3\n"
    assert metrics.render(MAX_AGE + 2.5) == b""
    assert metrics.revision(MAX_AGE + 9) == 5


@pytest.mark.expect_log(f"metric pve2-node/x is not stored: the limit is {MAX_METRICS} metrics")
def test_the_number_of_metrics_is_limited(metrics: Metrics) -> None:
    for number in range(MAX_METRICS):
        assert metrics.set(f"pve2.3-vm/{number}", b"1\0", now=0)
    assert not metrics.set("pve2-node/x", b"1\0", now=MAX_AGE)
    assert metrics.set("pve2.3-vm/7", b"2\0", now=MAX_AGE)
    assert metrics.set("pve2-node/x", b"1\0", now=MAX_AGE + 1)
    assert metrics.render(MAX_AGE + 1) == b"pve2.3-vm/7:2\npve2-node/x:1\n"


@pytest.mark.expect_log("is not stored")
def test_an_invalid_name_is_logged_once(metrics: Metrics, caplog: pytest.LogCaptureFixture) -> None:
    for number in [*range(MAX_REFUSED + 9)] * 2:
        metrics.set(f"unknown/{number}", b"1\0", now=0)
    assert len(caplog.records) == MAX_REFUSED
