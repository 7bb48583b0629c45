"""The recorder of metrics: its files, and an rrdcached that answers, is absent, hangs or fails."""

import contextlib
import errno
import fcntl
import itertools
import os
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmxcfs.rrd import _librrd
from pmxcfs.rrd import writer as rrd
from pmxcfs.rrd.schema import GUEST, NODE, STORAGE, Format, update_of
from pmxcfs.rrd.writer import Recorder, make_file
from tests.clients.rrdcached import RrdCached, await_true, metric
from tests.conftest import ExpectLog
from tests.fakes.doubles.attacker import Attacker

TIMEOUT = 20.0  # seconds
NEVER = "/nonexistent/rrdcached.sock"
F_SETOWN_EX, F_OWNER_TID = 15, 0  # of <fcntl.h>, which Python lacks
ARCHIVES = [(steps, rows) for steps, rows in ((1, 1440), (30, 1440), (360, 1440), (10080, 570))]


@contextlib.contextmanager
def recording(directory: Path, cached: Path | str = NEVER) -> Iterator[Recorder]:
    recorder = Recorder(directory, Path(cached), scratch=directory.parent)
    recorder.start()
    try:
        yield recorder
    finally:
        recorder.close(TIMEOUT)


@pytest.fixture
def cached(tmp_path: Path) -> Iterator[RrdCached]:
    server = RrdCached(tmp_path)
    yield server
    server.stop()


def await_empty(recorder: Recorder) -> None:
    await_true(lambda: recorder.waiting == 0)


def info(file: Path) -> dict[str, str]:
    """Return the output of ``rrdtool info``."""
    text = subprocess.run(
        ["rrdtool", "info", file], check=True, capture_output=True, text=True
    ).stdout
    return dict(line.split(" = ", 1) for line in text.splitlines())


def last_values(file: Path) -> list[str]:
    """Return the last value of each column."""
    text = subprocess.run(
        ["rrdtool", "lastupdate", file], check=True, capture_output=True, text=True
    ).stdout
    return text.splitlines()[-1].split()[1:]


# Files


@pytest.mark.parametrize(
    ("name", "file", "form"),
    [
        ("pve2-node/node2", "pve-node-9.0/node2", NODE),
        ("pve-node-9.0/node2", "pve-node-9.0/node2", NODE),
        ("pve2.3-vm/100", "pve-vm-9.0/100", GUEST),
        ("pve-vm-9.0/100", "pve-vm-9.0/100", GUEST),
        ("pve2-storage/node2/local", "pve-storage-9.0/node2/local", STORAGE),
        ("pve-storage-9.0/node2/local", "pve-storage-9.0/node2/local", STORAGE),
    ],
)
def test_files_are_as_specified(name: str, file: str, form: Format, tmp_path: Path) -> None:
    with recording(tmp_path / "db") as recorder:
        recorder.record(name, metric(name))
        await_empty(recorder)
    path = tmp_path / "db" / file
    told = info(path)
    assert told["step"] == "60"
    for number, column in enumerate(form.columns):
        counts = column in ("netin", "netout", "diskread", "diskwrite")
        prefix = f"ds[{column}]"
        assert told[f"{prefix}.index"] == str(number)
        assert told[f"{prefix}.type"] == ('"DERIVE"' if counts else '"GAUGE"')
        assert told[f"{prefix}.minimal_heartbeat"] == "120"
        assert float(told[f"{prefix}.min"]) == 0
        assert told[f"{prefix}.max"] == "NaN"
    assert f"ds[{form.columns[-1]}].index" in told
    assert sum(key.endswith(".minimal_heartbeat") for key in told) == len(form.columns)
    archives = [
        (told[f"rra[{i}].cf"], int(told[f"rra[{i}].pdp_per_row"]), int(told[f"rra[{i}].rows"]))
        for i in range(8)
    ]
    assert archives == [(cf, *rest) for cf in ('"AVERAGE"', '"MAX"') for rest in ARCHIVES]
    assert {float(told[f"rra[{i}].xff"]) for i in range(8)} == {0.5}
    assert "rra[8].cf" not in told
    assert path.parent.stat().st_mode & 0o777 == 0o750
    gauges = [i for i, c in enumerate(form.columns) if told[f"ds[{c}].type"] == '"GAUGE"']
    assert [last_values(path)[i] for i in gauges] == [str(i + 0.5) for i in gauges]


def test_a_file_begins_at_midnight(tmp_path: Path) -> None:
    update = update_of("pve2-storage/n/s", metric("pve2-storage/n/s"))
    make_file(tmp_path / "db" / "x" / "s", update, now=lambda: 1795368130.0, scratch=tmp_path)
    assert info(tmp_path / "db" / "x" / "s")["last_update"] == str(1795368130 // 86400 * 86400)


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    name = "pve2-storage/node2/local"
    with recording(tmp_path) as recorder:
        recorder.record(name, metric(name, age=20))
        await_empty(recorder)
        inode = (tmp_path / "pve-storage-9.0/node2/local").stat().st_ino
        recorder.record(name, metric(name, age=10))
        recorder.record(name, metric(name, age=10))  # a second time, which must cause no warning
        await_empty(recorder)
    assert (tmp_path / "pve-storage-9.0/node2/local").stat().st_ino == inode


def test_an_invalid_metric_is_logged_and_the_next_is_written(
    tmp_path: Path, expect_log: ExpectLog
) -> None:
    expect_log("metric pve2-node/bad has no time")
    with recording(tmp_path) as recorder:
        recorder.record("pve2-node/bad", b"nonsense")
        recorder.record("pve2-node/good", metric("pve2-node/good"))
        await_empty(recorder)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["good"]


def test_other_threads_run_while_librrd_waits(tmp_path: Path) -> None:
    """An open(2) of a file with a lease waits until the lease is given back (fcntl(2))."""
    file = tmp_path / "x"
    name = "pve2-storage/n/s"
    make_file(
        file, update_of(name, metric(name)), now=lambda: time.time() - 86400, scratch=tmp_path
    )
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])
    descriptor = os.open(file, os.O_RDONLY)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        # To this thread alone: others, which do not block the signal, would end by it.
        owner = struct.pack("ii", F_OWNER_TID, threading.get_native_id())
        fcntl.fcntl(descriptor, F_SETOWN_EX, owner)
        values = update_of(name, metric(name)).values
        thread = threading.Thread(target=_librrd.update, args=[str(file), values])
        start = time.monotonic()
        thread.start()
        # The signal says that the update waits. The kernel ends the wait after 45 s.
        assert signal.sigtimedwait([signal.SIGIO], TIMEOUT)
        assert time.monotonic() - start < TIMEOUT
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        thread.join(TIMEOUT)
    finally:
        os.close(descriptor)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGIO])
    assert last_values(file) == ["0.5", "1.5"]


# rrdcached


def test_rrdcached_gets_the_values(cached: RrdCached) -> None:
    name = "pve2-node/node2"
    with recording(cached.directory, cached.socket) as recorder:
        recorder.record(name, metric(name))
        await_empty(recorder)
        file = cached.directory / "pve-node-9.0/node2"
        assert last_values(file)[0] == "U"  # rrdcached holds the values and has not written them
        cached.flush(file)
        assert last_values(file)[0] == "0.5"


def test_without_rrdcached_files_are_written_until_it_is_back(cached: RrdCached) -> None:
    name = "pve2-node/node2"
    file = cached.directory / "pve-node-9.0/node2"
    with recording(cached.directory, cached.socket) as recorder:
        recorder.record(name, metric(name, age=30))
        await_empty(recorder)
        cached.stop()
        recorder.record(name, metric(name, age=20).replace(b":0.5:", b":20:", 1))
        await_empty(recorder)
        assert last_values(file)[0] == "20"
        cached.start()
        recorder.record(name, metric(name, age=10).replace(b":0.5:", b":10:", 1))
        await_empty(recorder)
        assert last_values(file)[0] == "20"
        cached.flush(file)
        assert last_values(file)[0] == "10"


def test_the_backlog_of_a_hung_rrdcached_arrives(
    cached: RrdCached, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    expect_log("sending metrics to rrdcached: rrdcached does not answer")
    monkeypatch.setattr(rrd, "TIMEOUT", 0.1)
    monkeypatch.setattr(rrd, "RETRY_AFTER", 0.1)
    names = [f"pve2.3-vm/{vmid}" for vmid in range(100, 150)]
    with recording(cached.directory, cached.socket) as recorder:
        for name in names:
            recorder.record(name, metric(name, age=10))
        await_empty(recorder)
        cached.freeze()
        for name in names:
            recorder.record(name, metric(name))
        await_true(lambda: "does not answer" in recorder.trouble)
        assert recorder.waiting == len(names)
        cached.process.send_signal(signal.SIGCONT)
        await_empty(recorder)
        assert not recorder.trouble
    newest = int(time.time()) - 5
    for name in names:
        file = cached.directory / "pve-vm-9.0" / name.partition("/")[2]
        cached.flush(file)
        assert int(info(file)["last_update"]) > newest - TIMEOUT


def test_the_queue_is_bounded_and_keeps_the_newest(
    cached: RrdCached, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    expect_log("does not answer")
    expect_log("dropped a metric")
    monkeypatch.setattr(rrd, "TIMEOUT", 0.1)
    monkeypatch.setattr(rrd, "RETRY_AFTER", 0.1)
    monkeypatch.setattr(rrd, "MAX_QUEUED", 100_000)
    with recording(cached.directory, cached.socket) as recorder:
        cached.freeze()
        for vmid in range(100, 1100):
            name = f"pve2.3-vm/{vmid}"
            recorder.record(name, metric(name))
        await_true(lambda: bool(recorder.trouble))
        assert recorder.waiting < 300
        cached.process.send_signal(signal.SIGCONT)
        await_empty(recorder)
    written = {int(path.name) for path in (cached.directory / "pve-vm-9.0").iterdir()}
    assert max(written) == 1099
    assert 100 < len(written) < 300


def test_recording_never_waits(cached: RrdCached, expect_log: ExpectLog) -> None:
    expect_log("does not answer")
    with recording(cached.directory, cached.socket) as recorder:
        cached.freeze()
        data = metric("pve2-node/n")
        start = time.monotonic()
        for _ in range(10_000):
            recorder.record("pve2-node/n", data)
        assert time.monotonic() - start < rrd.TIMEOUT
        await_true(lambda: bool(recorder.trouble))
        cached.stop()


def test_a_stop_does_not_wait_for_a_hung_rrdcached(
    cached: RrdCached, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    monkeypatch.setattr(rrd, "TIMEOUT", 3.0)
    recorder = Recorder(cached.directory, cached.socket, scratch=cached.directory)
    recorder.start()
    cached.freeze()
    recorder.record("pve2-node/n", metric("pve2-node/n"))
    start = time.monotonic()
    recorder.close(0.3)
    assert time.monotonic() - start < rrd.TIMEOUT
    expect_log("does not answer")
    recorder.close(TIMEOUT)


def test_a_full_disk_is_logged_once_and_writing_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    monkeypatch.setattr(rrd, "CREATE_AGAIN_AFTER", 0.0)
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    expect_log("writing metrics: pve2-node/")
    full = tmp_path / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", full], check=True)
    try:
        with recording(full) as recorder:
            for number in range(5):
                recorder.record(f"pve2-node/n{number}", metric("pve2-node/n"))
            await_empty(recorder)
            assert recorder.trouble
            assert not list(full.rglob("*~"))
            subprocess.run(["mount", "-o", "remount,size=64M", full], check=True)
            recorder.record("pve2-node/last", metric("pve2-node/last"))
            await_empty(recorder)
            await_true(lambda: not recorder.trouble)
        assert last_values(full / "pve-node-9.0" / "last")[0] == "0.5"
    finally:
        subprocess.run(["umount", full], check=True)


def test_an_invalid_metric_is_no_failure_of_the_disk(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, expect_log: ExpectLog
) -> None:
    expect_log("writing metrics: pve2-node/n: ")
    expect_log("metric pve2-node/bad has no time")
    (tmp_path / "file").touch()
    with recording(tmp_path / "file") as recorder:
        for _ in range(3):
            recorder.record("pve2-node/n", metric("pve2-node/n"))
            recorder.record("pve2-node/bad", b"1:2:never")
        await_empty(recorder)
        assert "pve2-node/n" in recorder.trouble
    assert len(caplog.records) == 2


def test_making_a_file_is_not_retried_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expect_log: ExpectLog
) -> None:
    expect_log("writing metrics: pve2-node/n0: no room")
    attempts: list[Path] = []

    def fail(file: Path, *_: object, **__: object) -> None:
        attempts.append(file)
        raise OSError("no room")

    monkeypatch.setattr(rrd, "make_file", fail)
    with recording(tmp_path) as recorder:
        for number in range(100):
            recorder.record(f"pve2-node/n{number}", metric("pve2-node/n"))
        await_empty(recorder)
        assert recorder.trouble == "pve2-node/n0: no room"
    assert attempts == [tmp_path / "pve-node-9.0" / "n0"]


def test_a_directory_that_can_not_be_made_is_logged(tmp_path: Path, expect_log: ExpectLog) -> None:
    expect_log(f"writing metrics: .*{os.strerror(errno.ENOTDIR)}")
    (tmp_path / "file").touch()
    with recording(tmp_path / "file") as recorder:
        recorder.record("pve2-node/n", metric("pve2-node/n"))
        await_empty(recorder)
        assert "pve2-node/n" in recorder.trouble


# Directories that belong to rrdcached's user, who can replace what is in them at any time


@pytest.mark.parametrize("attacked", ["db", "db/pve-storage-9.0", "db/pve-storage-9.0/n"])
def test_no_file_is_made_or_changed_behind_a_link_of_another_user(
    attacked: str, tmp_path: Path
) -> None:
    name = "pve2-storage/n/s"
    for step in itertools.count(1):
        home, victim = tmp_path / f"{step}" / "rrdcached", tmp_path / f"{step}" / "victim"
        (home / "db" / "pve-storage-9.0" / "n").mkdir(parents=True)
        (victim / "pve-storage-9.0" / "n").mkdir(parents=True)
        (victim / "n").mkdir()
        attacker = Attacker(home / attacked, victim, step=step)
        with attacker.acting(), contextlib.suppress(OSError):
            make_file(
                home / "db" / "pve-storage-9.0" / "n" / "s",
                update_of(name, metric(name)),
                now=time.time,
                scratch=tmp_path,
            )
        assert not [path for path in victim.rglob("*") if path.is_file()]
        if not attacker.has_acted:
            break
    assert step > 5
    assert (home / "db" / "pve-storage-9.0" / "n" / "s").is_file()


def test_links_in_place_of_files_are_not_followed(tmp_path: Path, expect_log: ExpectLog) -> None:
    directory = tmp_path / "db" / "pve-storage-9.0" / "n"
    directory.mkdir(parents=True)
    (tmp_path / "victim").write_text("kept")
    (directory / "new~").symlink_to(tmp_path / "victim")
    (directory / "link").symlink_to(tmp_path / "victim")
    expect_log("writing metrics: pve2-storage/n/link: .*symbolic links: 'link'")
    with recording(tmp_path / "db") as recorder:
        for name in ("pve2-storage/n/link", "pve2-storage/n/new"):
            recorder.record(name, metric(name))
        await_empty(recorder)
    assert (tmp_path / "victim").read_text() == "kept"
    assert last_values(directory / "new") == ["0.5", "1.5"]
    assert sorted(os.listdir(directory)) == ["link", "new"]
