"""Start and end of a real daemon: background, mountpoint, lock, signals, service manager, log."""

import contextlib
import errno
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pmxcfs.host.mountpoint import DEAD
from pmxcfs.host.process import STOP_SIGNALS
from pmxcfs.messages import MAX_FILE_SIZE
from tests.fakes.programs import careless
from tests.harness import GRACE, LOG_LINE, arguments, detach, is_mount, launch, mounted, wait_for

STOP_DEADLINE = 3.0  # seconds, of the contract
TOLD = 5.0  # seconds; 1 by the contract

pytestmark = pytest.mark.needs_fuse


def run_in_background(workdir: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Start a daemon as a shell script would."""
    command = [sys.executable, "-m", "pmxcfs", *arguments(workdir), *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=2 * GRACE)


@contextlib.contextmanager
def background(workdir: Path) -> Iterator[int]:
    """Run a daemon in the background; yields its pid."""
    try:
        result = run_in_background(workdir)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
        yield int((workdir / "run" / "pmxcfs.pid").read_text())
    finally:
        detach(workdir / "pve")  # ends a daemon that still runs


def terminate(pid: int) -> None:
    """Send SIGTERM to a process that is not a child, and wait for its end."""
    descriptor = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGTERM)
        ended, _, _ = select.select([descriptor], [], [], STOP_DEADLINE)
        assert ended
    finally:
        os.close(descriptor)


def errno_of(call: Callable[[], object]) -> int | None:
    """Return the errno that a call fails with; None if it succeeds."""
    try:
        call()
    except OSError as error:
        return error.errno
    return None


def test_the_parent_returns_when_the_mount_serves(tmp_path: Path) -> None:
    with background(tmp_path) as pid:
        (tmp_path / "pve" / "file").write_text("served\n")
        terminate(pid)
    assert not is_mount(tmp_path / "pve")
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == [
        ".pmxcfs.lockfile",
        "config.db",
        "journal",
    ]
    # Local clients wait for a restart as long as this file exists.
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["cfs-restart-flag"]


def test_the_daemon_leaves_the_directory_and_streams_of_its_start(tmp_path: Path) -> None:
    with background(tmp_path) as pid:
        process = Path(f"/proc/{pid}")
        assert (process / "comm").read_text() == "pmxcfs\n"
        assert os.readlink(process / "cwd") == "/"
        assert {os.readlink(process / "fd" / str(number)) for number in range(3)} == {"/dev/null"}
        assert os.getsid(pid) not in (os.getsid(0), pid)
        terminate(pid)


@pytest.mark.parametrize("streams", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_the_daemon_starts_without_standard_streams(streams: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pmxcfs", *arguments(tmp_path)]
    closed = ["sh", "-c", f'exec "$@" {streams}', "sh", *command]
    try:
        assert subprocess.run(closed, check=False, timeout=2 * GRACE).returncode == 0
        pid = int((tmp_path / "run" / "pmxcfs.pid").read_text())
        links = {os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)}
        assert links == {"/dev/null"}
        terminate(pid)
    finally:
        detach(tmp_path / "pve")


@pytest.mark.parametrize("flags", [[], ["--foreground"]])
def test_a_refused_start_prints_one_line(flags: list[str], tmp_path: Path) -> None:
    result = run_in_background(tmp_path, "--group", "no-such-group", *flags)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(r"pmxcfs: there is no group 'no-such-group': .*\n", result.stderr)
    assert not is_mount(tmp_path / "pve")


def test_the_error_for_a_file_that_is_no_database_names_it(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "config.db").write_bytes(b"not a database, but long enough" * 100)
    result = run_in_background(tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(r"pmxcfs: .*/state/config\.db.*\n", result.stderr)
    assert not is_mount(tmp_path / "pve")


def test_the_pid_of_a_killed_daemon_is_forgotten_before_the_next_one_serves(tmp_path: Path) -> None:
    with mounted(tmp_path) as daemon:
        daemon.kill()
        assert (tmp_path / "run" / "pmxcfs.pid").exists()
    (tmp_path / "state" / "config.db").write_bytes(b"not a database, but long enough" * 100)
    assert run_in_background(tmp_path).returncode == 1
    assert not (tmp_path / "run" / "pmxcfs.pid").exists()


def fail_to_start_clustered(workdir: Path, corosync_conf: bytes) -> None:
    """Start a daemon with a corosync.conf that it can't use; assert that it fails."""
    (workdir / "corosync.conf").write_bytes(corosync_conf)
    options = [option for option in arguments(workdir) if option != "--local"]
    options.append(f"--corosync-conf={workdir / 'corosync.conf'}")
    command = [sys.executable, "-m", "pmxcfs", *options]
    result = subprocess.run(command, capture_output=True, check=False, timeout=2 * GRACE)
    assert result.returncode == 1


@pytest.mark.parametrize("left", [".pmxcfs.lockfile", "conflicts", "config.db.bak-1"])
@pytest.mark.parametrize("is_empty", [False, True], ids=["missing", "empty"])
def test_a_database_that_was_there_before_is_missed(
    tmp_path: Path, left: str, *, is_empty: bool
) -> None:
    (tmp_path / "state").mkdir(mode=0o750)
    trace = tmp_path / "state" / left
    trace.mkdir() if left == "conflicts" else trace.touch()
    if is_empty:
        (tmp_path / "state" / "config.db").touch()
    told = r"config\.db is missing or empty, although this directory was in use before"
    with mounted(tmp_path, expect_log=[told]) as daemon:
        (daemon.path / "file").write_text("it serves\n")
        (line,) = [line for line in daemon.log_text().splitlines() if "in use before" in line]
        assert left in line


def test_a_failed_first_start_leaves_no_database_that_serves_alone(tmp_path: Path) -> None:
    """A second start would serve such a database and ignore the host's corosync.conf."""
    for _ in range(2):
        fail_to_start_clustered(tmp_path, bytes(MAX_FILE_SIZE + 1))
        assert os.listdir(tmp_path / "state") == [".pmxcfs.lockfile"]


def test_a_dangling_link_in_place_of_the_database_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    link = tmp_path / "state" / "config.db"
    link.symlink_to("not-mounted/config.db")
    fail_to_start_clustered(tmp_path, b"totem {\n}\n")
    assert link.is_symlink()


@pytest.mark.parametrize("number", sorted(STOP_SIGNALS))
def test_each_stop_signal_ends_the_daemon_in_order(number: signal.Signals, tmp_path: Path) -> None:
    with mounted(tmp_path) as daemon:
        daemon.stop(number, grace=STOP_DEADLINE)


def test_inherited_blocked_signals_do_not_prevent_the_end(tmp_path: Path) -> None:
    blocking = (
        "import signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals());"
        "from pmxcfs.cli.main import main; sys.exit(main())"
    )
    with mounted(tmp_path, program=("-c", blocking)) as daemon:
        daemon.stop(grace=STOP_DEADLINE)


def test_a_bug_while_stopping_does_not_prevent_the_end(tmp_path: Path) -> None:
    broken = (careless.__file__, "fail-to-finish")
    expected = ["thread signals ended by an exception", "critical: "]
    with mounted(tmp_path, program=broken, expect_log=expected) as daemon:
        daemon.stop(grace=STOP_DEADLINE)


@pytest.mark.parametrize("workers", ["5", "16"])
def test_an_open_file_does_not_delay_the_end(workers: str, tmp_path: Path) -> None:
    """Bytes of a file that is still open are published at the end."""
    with mounted(tmp_path, "--workers", workers) as daemon:
        descriptor = os.open(daemon.path / "file", os.O_CREAT | os.O_WRONLY)
        os.write(descriptor, b"not closed yet\n")
        daemon.stop(grace=STOP_DEADLINE)
        assert errno_of(lambda: os.close(descriptor)) in (errno.ENOTCONN, errno.ECONNABORTED)
    with mounted(tmp_path) as daemon:
        assert (daemon.path / "file").read_text() == "not closed yet\n"


def test_an_unmount_by_another_process_ends_the_daemon(tmp_path: Path) -> None:
    with mounted(tmp_path) as daemon:
        (daemon.path / "file").write_text("kept\n")
        subprocess.run(["umount", daemon.path], check=True)
        assert daemon.process.wait(GRACE) == 0
    with mounted(tmp_path) as daemon:
        assert (daemon.path / "file").read_text() == "kept\n"


def test_a_dead_daemons_mount_is_removed(tmp_path: Path) -> None:
    with mounted(tmp_path) as killed:
        (killed.path / "file").write_text("survives\n")
        killed.was_killed = True
        killed.process.kill()
        killed.process.wait()
        assert errno_of(killed.path.stat) in DEAD
        with mounted(tmp_path, expect_log=["removing the stale mount"]) as daemon:
            assert (daemon.path / "file").read_text() == "survives\n"


def test_a_dead_mount_whose_root_is_cached_is_removed_too(tmp_path: Path) -> None:
    with mounted(tmp_path) as killed:
        os.listdir(killed.path)
        killed.path.stat()
        killed.was_killed = True
        killed.process.kill()
        killed.process.wait()
        assert killed.path.stat()
        with mounted(tmp_path, expect_log=["removing the stale mount"]):
            assert not killed.path.joinpath("file").exists()


def test_files_below_the_mount_are_visible_again_after_the_end(tmp_path: Path) -> None:
    (tmp_path / "pve").mkdir()
    (tmp_path / "pve" / "below").touch()
    with mounted(tmp_path, expect_log=["not empty: mounting over 1 entries"]) as daemon:
        assert not (daemon.path / "below").exists()
    assert (tmp_path / "pve" / "below").exists()


def test_files_of_the_daemon_are_accessible_by_root_and_the_group_alone(tmp_path: Path) -> None:
    with mounted(tmp_path) as daemon:
        modes = {
            path.relative_to(tmp_path): path.stat().st_mode & 0o7777
            for path in (daemon.state, daemon.run, daemon.state / "config.db")
        }
        assert list(modes.values()) == [0o750, 0o750, 0o600]
        assert daemon.run.group() == "www-data"


def test_a_second_daemon_waits_for_the_first(tmp_path: Path) -> None:
    """It waits some seconds for the lock, so a daemon that is stopping does not fail a restart."""
    with mounted(tmp_path) as first:
        (first.path / "file").write_text("first\n")
        second = launch(tmp_path)
        try:
            # Both daemons have the lock file open before the first one ends.
            wait_for(lambda: has_open(second.process.pid, ".pmxcfs.lockfile"), second)
            first.stop(grace=STOP_DEADLINE)
            wait_for(second.is_ready, second)
            assert (second.path / "file").read_text() == "first\n"
            second.stop(grace=STOP_DEADLINE)
        finally:
            second.process.kill()
            second.process.wait()
            detach(second.path)
        second.check_end()


def has_open(pid: int, name: str) -> bool:
    """Tell whether a process has a file with this name open."""
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the descriptor was closed after the listing
            if os.readlink(path).endswith(f"/{name}"):
                return True
    return False


@pytest.fixture
def service_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The notification socket of the service manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.settimeout(GRACE)
        server.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield server


def hear(service_manager: socket.socket, start: str) -> str:
    """Return the next message that begins with *start*."""
    while not (message := service_manager.recv(1000).decode()).startswith(start):
        pass
    return message


def test_the_service_manager_is_told_of_start_and_stop(
    service_manager: socket.socket, tmp_path: Path
) -> None:
    with mounted(tmp_path) as daemon:
        assert hear(service_manager, "READY=1")
        assert is_mount(daemon.path)
        daemon.stop()
        service_manager.settimeout(0)
        assert hear(service_manager, "STOPPING=1")


def test_the_service_manager_gets_heartbeats_until_the_daemon_hangs(
    service_manager: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    with mounted(tmp_path) as daemon:
        (daemon.path / "file").touch()
        beats = [hear(service_manager, "WATCHDOG=1\nSTATUS=") for _ in range(10)]
        assert "STATUS=healthy; 1 entries, version" in beats[-1]
        daemon.process.send_signal(signal.SIGSTOP)
        service_manager.settimeout(1)
        with pytest.raises(TimeoutError):  # no message, after those in flight
            hear(service_manager, "READY=1")
        daemon.process.send_signal(signal.SIGCONT)
        assert hear(service_manager, "WATCHDOG=1")


def test_the_service_manager_is_told_of_a_change_of_the_state_at_once(
    service_manager: socket.socket, tmp_path: Path
) -> None:
    with mounted(tmp_path, "--test-control") as daemon:
        assert hear(service_manager, "STATUS=").startswith("STATUS=healthy; ")
        for on, line in (
            (False, "STATUS=failed: no quorum, so it is read-only; "),
            (True, "STATUS=h"),
        ):
            began = time.monotonic()
            daemon.control("quorum", on=on)
            assert hear(service_manager, line)
            assert time.monotonic() - began < TOLD


def why_unusable(name: str) -> str:
    """Return a pattern of why other nodes can't use the addresses of a name of this machine."""
    try:
        socket.getaddrinfo(name, None)
    except socket.gaierror as error:  # as in a chroot without /etc/hosts
        return re.escape(str(error))
    return "only loopback addresses: .*"


def test_a_lone_node_without_a_usable_address_logs_a_warning(tmp_path: Path) -> None:
    no_cluster = ("--corosync-conf", tmp_path / "none")
    complaint = f"localhost .*: {why_unusable('localhost')}; add the name to /etc/hosts"
    with mounted(
        tmp_path, *no_cluster, nodename="localhost", local=False, expect_log=[complaint]
    ) as daemon:
        wait_for(lambda: "can't resolve" in daemon.log_text(), daemon)


def test_debug_logs_each_request_and_no_content(tmp_path: Path) -> None:
    with mounted(tmp_path, "--debug") as daemon:
        (daemon.path / "priv").mkdir()
        (daemon.path / "priv" / "hidden-name").write_text("hidden-content\n")
        (daemon.path / "shown-name").write_text("shown-content\n")
        assert (daemon.path / "shown-name").read_text()
        assert not (daemon.path / "absent").exists()
        os.listdir(daemon.path)
        (daemon.path / "shown-name").chmod(0o640)
        os.truncate(daemon.path / "shown-name", 3)
        daemon.stop()
        text = daemon.log_text()
    requests = [line for line in text.splitlines() if "[fuse] debug: " in line]
    assert all(map(LOG_LINE.match, requests))
    me = rf"\[pid {os.getpid()} uid 0\]"
    for pattern in (
        rf"create / shown-name 01006\d\d O_WRONLY\|\S*O_TRUNC\S* {me} -> ok \(\d+ us\)",
        rf"write /shown-name 0 14 bytes \[(opened by )?{me[2:]} -> ok",
        rf"open /shown-name O_RDONLY\S* {me} -> ok",
        rf"lookup / absent {me} -> ENOENT \(\d+ us\)",
        rf"setattr /shown-name mode 0640 {me} -> ",
        rf"setattr /shown-name size 3 {me} -> ok",
        rf"readdir / 0 .*\[(opened by )?{me[2:]} -> ok",
        rf"release \(private\) \[opened by {me[2:]} -> ok",
    ):
        assert any(re.search(pattern, line) for line in requests), (pattern, requests)
    assert [line for line in requests if " mkdir " in line]
    for hidden in ("hidden-name", "hidden-content", "shown-content"):
        assert hidden not in text


def test_writing_debug_switches_verbose_logging(tmp_path: Path) -> None:
    with mounted(tmp_path) as daemon:
        debug = daemon.path / ".debug"
        (daemon.path / "before").mkdir()
        debug.write_text("1\n")
        assert debug.read_text() == "1\n"
        (daemon.path / "during").mkdir()
        debug.write_text("0\n")
        (daemon.path / "after").mkdir()
        daemon.stop()
        names = re.findall(r"mkdir / (\w+)", daemon.log_text())
    assert names == ["during"]
