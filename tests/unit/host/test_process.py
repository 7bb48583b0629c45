"""``host.process``, as far as that needs no mount: directories, lock, pid file, fork, signals."""

import grp
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmxcfs.errors import StartError
from pmxcfs.host import process
from pmxcfs.settings import Settings
from tests.conftest import ExpectLog
from tests.places import PROGRAMS

NO_MOUNT = Path("/nonexistent")
DEADLINE = 30.0  # seconds that a child process may take on a busy machine


@pytest.fixture
def umask() -> Iterator[int]:
    """Keep the umask of the tests as it is."""
    before = os.umask(0o022)
    yield before
    os.umask(before)


def test_the_group_is_looked_up_by_name() -> None:
    assert process.find_gid("root") == grp.getgrnam("root").gr_gid


def test_the_error_for_a_missing_group_says_what_to_do() -> None:
    with pytest.raises(StartError, match=r"no group 'no-such': create it .* or .* --group"):
        process.find_gid("no-such")


def test_new_directories_are_accessible_by_the_group_alone(tmp_path: Path, umask: int) -> None:
    settings = Settings(nodename="n", statedir=tmp_path / "deep" / "state", rundir=tmp_path / "run")
    process.make_directories(settings, gid=os.getgid())
    for path in (settings.statedir, settings.rundir):
        assert path.stat().st_mode & 0o7777 == 0o750
    (settings.rundir / "file").touch()
    assert (settings.rundir / "file").stat().st_mode & 0o777 == 0o640


def test_modes_of_existing_directories_are_kept(tmp_path: Path, umask: int) -> None:
    tmp_path.chmod(0o705)
    process.make_directories(
        Settings(nodename="n", statedir=tmp_path, rundir=tmp_path), gid=os.getgid()
    )
    assert tmp_path.stat().st_mode & 0o7777 == 0o705


@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_directories_that_others_can_write_to_cause_a_warning(
    tmp_path: Path, umask: int, mode: int, expect_log: ExpectLog
) -> None:
    for name in ("state", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "state").chmod(mode)
    expect_log(f"other users can replace files in {tmp_path / 'state'}: make root its owner")
    settings = Settings(nodename="n", statedir=tmp_path / "state", rundir=tmp_path / "run")
    process.make_directories(settings, gid=os.getgid())


def test_a_file_in_place_of_a_directory_is_an_error(tmp_path: Path, umask: int) -> None:
    file = tmp_path / "file"
    file.touch()
    for path in (file, file / "below"):
        with pytest.raises(StartError, match=re.escape(str(path))):
            process.make_directories(
                Settings(nodename="n", statedir=path, rundir=tmp_path), gid=os.getgid()
            )


def test_a_directory_that_can_not_be_created_is_an_error(tmp_path: Path, umask: int) -> None:
    impossible = Path("/proc/pmxcfs")
    with pytest.raises(StartError, match=f"can't make directory {impossible}"):
        process.make_directories(
            Settings(nodename="n", statedir=tmp_path, rundir=impossible), gid=os.getgid()
        )


def test_the_second_daemon_is_told_the_pid_of_the_first(tmp_path: Path) -> None:
    lockfile = tmp_path / ".pmxcfs.lockfile"
    with (
        process.StateLock(lockfile, mountpoint=NO_MOUNT),
        pytest.raises(StartError, match=rf"{tmp_path} is in use .* pid {os.getpid()}$"),
        process.StateLock(lockfile, mountpoint=NO_MOUNT, timeout=0),
    ):
        pass
    with process.StateLock(lockfile, mountpoint=NO_MOUNT, timeout=0):
        assert lockfile.read_text() == f"{os.getpid()}\n"


def test_a_daemon_waits_for_the_lock_of_one_that_is_stopping(tmp_path: Path) -> None:
    first = process.StateLock(tmp_path / "lock", mountpoint=NO_MOUNT)
    with first:
        waiting = threading.Thread(target=take_and_release, args=(tmp_path / "lock",))
        waiting.start()
    waiting.join(DEADLINE)
    assert not waiting.is_alive()


def take_and_release(path: Path) -> None:
    with process.StateLock(path, mountpoint=NO_MOUNT, timeout=DEADLINE):
        pass


def test_a_signal_ends_the_wait_for_the_lock(tmp_path: Path) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, process.STOP_SIGNALS)
    try:
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        with (
            process.StateLock(tmp_path / "lock", mountpoint=NO_MOUNT),
            pytest.raises(StartError, match="stopped by a signal"),
            process.StateLock(tmp_path / "lock", mountpoint=NO_MOUNT, timeout=DEADLINE),
        ):
            pass
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_daemon_that_ends_in_order_leaves_no_stale_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first daemon releases the lock and ends while the second looks at its state."""

    def is_dying(pid: str) -> bool:
        first.__exit__()
        return True

    monkeypatch.setattr(process, "is_dying", is_dying)
    first = process.StateLock(tmp_path / "lock", mountpoint=NO_MOUNT)
    first.__enter__()
    with process.StateLock(tmp_path / "lock", mountpoint=NO_MOUNT, timeout=0):
        pass  # a warning would fail the test


def test_a_lock_file_that_can_not_be_opened_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(StartError, match="can't open lock file"),
        process.StateLock(tmp_path, mountpoint=NO_MOUNT),
    ):
        pass


def test_links_in_place_of_lock_file_and_pid_file_are_not_followed(tmp_path: Path) -> None:
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_text("kept")
    link.symlink_to(victim)
    with (
        pytest.raises(StartError, match="can't open lock file"),
        process.StateLock(link, mountpoint=NO_MOUNT),
    ):
        pass
    with process.pid_file(link):
        assert not link.is_symlink()
        assert link.read_text() == f"{os.getpid()}\n"
    assert victim.read_text() == "kept"


def test_the_pid_file_lives_as_long_as_the_daemon(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text("123456\n")  # left by a daemon that was killed
    with process.pid_file(path):
        assert path.read_text() == f"{os.getpid()}\n"
        assert path.stat().st_mode & 0o777 == 0o644
    assert not path.exists()


def test_a_pid_file_of_another_daemon_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with process.pid_file(path):
        path.write_text("1\n")
    assert path.read_text() == "1\n"


def test_a_pid_file_that_was_removed_is_no_error(tmp_path: Path) -> None:
    with process.pid_file(tmp_path / "pid"):
        (tmp_path / "pid").unlink()
    assert not (tmp_path / "pid").exists()


def test_a_pid_file_that_can_not_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="pid file"), process.pid_file(tmp_path / "no" / "pid"):
        pass


def test_a_plain_directory_can_not_be_unmounted(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=f"can't unmount {tmp_path}"):
        process.detach(tmp_path)


def test_only_a_fuse_mount_counts_as_mounted(tmp_path: Path) -> None:
    assert not process.is_mounted(tmp_path)
    assert not process.is_mounted(Path("/proc"))  # a mount, but not one of FUSE


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("refuse", "pmxcfs: no: \xe4\n"),
        ("die", "pmxcfs: the daemon died while it started\n"),
        ("stay", "pmxcfs: the daemon runs, but the mount on {} does not answer\n"),
        ("fail-later", "pmxcfs: the daemon runs, but the mount on {} does not answer\n"),
    ],
)
def test_the_parent_prints_why_the_daemon_has_not_started(
    how: str, message: str, tmp_path: Path
) -> None:
    """The call returns although the daemon has inherited the pipes: the daemon closes them."""
    command = [sys.executable, f"{PROGRAMS}/background.py", str(tmp_path), how]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE)
    assert (result.returncode, result.stdout, result.stderr) == (1, "", message.format(tmp_path))


def test_a_parent_that_ignores_sigchld_prints_the_reason_too(tmp_path: Path) -> None:
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN);"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    command = [sys.executable, "-c", ignoring, f"{PROGRAMS}/background.py", str(tmp_path), "refuse"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE)
    assert (result.returncode, result.stderr) == (1, "pmxcfs: no: \xe4\n")


@pytest.mark.parametrize("number", sorted(process.STOP_SIGNALS))
def test_the_signal_waiter_calls_back_once_for_many_signals(number: signal.Signals) -> None:
    command = [sys.executable, f"{PROGRAMS}/await_signal.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        assert child.stdout.readline() == "waiting as waiting\n"
        child.send_signal(number)
        child.send_signal(number)  # the second one changes nothing
        output, _ = child.communicate(timeout=DEADLINE)
    assert (child.returncode, output) == (0, "stopped by signals\nclosed\n")


def test_the_signal_waiter_can_be_closed_without_a_signal() -> None:
    command = [sys.executable, f"{PROGRAMS}/await_signal.py", "close"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE)
    assert result.stdout == "waiting as waiting\nclosed\n"


@pytest.mark.parametrize("is_abstract", [False, True])
def test_the_service_manager_is_notified_on_its_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_abstract: bool
) -> None:
    name = f"pmxcfs-test-{os.getpid()}" if is_abstract else str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if is_abstract else name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(f"\0{name}" if is_abstract else name)
        process.notify_service_manager("READY=1")
        assert server.recv(100) == b"READY=1"


def test_a_missing_service_manager_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    process.notify_service_manager("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    process.notify_service_manager("READY=1")


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "2500000"}, 2.5),
        ({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": "own"}, 2.5),
        ({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": ""}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_timeout_comes_from_the_environment_of_this_process(
    variables: dict[str, str], seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, str(os.getpid()) if value == "own" else value)
    assert process.watchdog_timeout() == seconds


def test_an_empty_notify_socket_means_no_service_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "")
    assert not process.has_service_manager()
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    assert process.has_service_manager()
