"""The command line: the settings that arguments become, and the messages for wrong ones."""

import dataclasses
import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pmxcfs
from pmxcfs.cli import main as cli
from pmxcfs.cli import offline
from pmxcfs.daemon import daemon
from pmxcfs.errors import StartError, StoreError
from pmxcfs.settings import HistoryLimits, Settings
from tests import foreign

DEFAULTS = Settings(nodename="unused")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Collect the settings of daemons that the test starts, instead of starting them."""
    settings: list[Settings] = []

    def record(given: Settings) -> int:
        settings.append(given)
        return 0

    monkeypatch.setattr(daemon, "run", record)
    return settings


@pytest.fixture
def offline_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """Collect the calls of the offline commands, instead of running them."""
    calls: list[tuple[object, ...]] = []
    for name in ("fsck", "dump", "export", "import_"):

        def record(*args: object, name: str = name, **kwargs: object) -> int:
            calls.append((name, *args, *kwargs.items()))
            return 3

        monkeypatch.setattr(offline, name, record)
    return calls


def settings_for(*argv: str, started: list[Settings]) -> Settings:
    assert cli.main(argv) == 0
    return started.pop()


def test_defaults_are_those_of_a_proxmox_node(started: list[Settings]) -> None:
    settings = settings_for(started=started)
    assert dataclasses.replace(settings, nodename="unused") == DEFAULTS
    assert settings.nodename == os.uname().nodename.partition(".")[0]
    assert [str(path) for path in (settings.mountpoint, settings.statedir, settings.rundir)] == [
        "/etc/pve",
        "/var/lib/pve-cluster",
        "/run/pve-cluster",
    ]
    assert str(settings.pidfile) == "/run/pve-cluster.pid"
    assert settings.group == "www-data"
    assert str(settings.database) == "/var/lib/pve-cluster/config.db"
    assert str(settings.lockfile) == "/var/lib/pve-cluster/.pmxcfs.lockfile"


@pytest.mark.parametrize(
    ("argv", "field", "value"),
    [
        (["-d"], "debug", True),
        (["--debug"], "debug", True),
        (["-f"], "foreground", True),
        (["--foreground"], "foreground", True),
        (["-l"], "local", True),
        (["--local"], "local", True),
        (["--test-control"], "test_control", True),
        (["--workers", "7"], "workers", 7),
        (["--fuse", "native"], "fuse", "native"),
        (["--history-size", "0"], "history_size", 0),
        (["--history-size", "1000"], "history_size", 1000),
        (["--history-size", "7K"], "history_size", 7 << 10),
        (["--history-size", "7M"], "history_size", 7 << 20),
        (["--history-size", "7G"], "history_size", 7 << 30),
        (["--history-age", "7"], "history_age", 7),
        (["--history-private"], "history_private", True),
        (["--mountpoint", "/a/b"], "mountpoint", Path("/a/b")),
        (["--statedir", "/a/b"], "statedir", Path("/a/b")),
        (["--pidfile", "/a/b"], "pidfile", Path("/a/b")),
        (["--nodename", "alpha.example.com"], "nodename", "alpha"),
        (["--group", "staff"], "group", "staff"),
        (["--corosync-conf", "/a/b"], "corosync_conf", Path("/a/b")),
        (["--rrddir", "/a/b"], "rrddir", Path("/a/b")),
        (["--rrdcached-socket", "/a/b"], "rrdcached_socket", Path("/a/b")),
        (["--ipc-name", "other"], "ipc_name", "other"),
    ],
)
def test_an_option_changes_its_setting_alone(
    argv: list[str], field: str, value: Any, started: list[Settings]
) -> None:
    plain = settings_for("--nodename", "n", started=started)
    changed = settings_for("--nodename", "n", *argv, started=started)
    assert getattr(changed, field) == value
    assert changed == dataclasses.replace(plain, **{field: value})


@pytest.mark.parametrize("size", ["", "M", "7m", "7MB", "-7", "7.5M", "x"])
def test_a_size_that_is_none_is_refused(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        cli.main([f"--history-size={size}"])
    assert refusal.value.code == cli.WRONG_USAGE
    assert f"not a number of bytes, as 64M: {size!r}" in capsys.readouterr().err


def test_the_limits_of_the_history(started: list[Settings]) -> None:
    settings = settings_for("--history-size", "1M", "--history-age", "2", started=started)
    assert settings.history == HistoryLimits(1 << 20, 2 * 86400, keeps_private=False)


def test_short_flags_combine(started: list[Settings]) -> None:
    settings = settings_for("-dfl", started=started)
    assert (settings.debug, settings.foreground, settings.local) == (True, True, True)


def test_the_pid_file_follows_the_run_directory(started: list[Settings]) -> None:
    settings = settings_for("--rundir", "/a/run", started=started)
    assert settings.pidfile == Path("/a/run/pmxcfs.pid")
    settings = settings_for("--rundir", "/a/run", "--pidfile", "/b", started=started)
    assert settings.pidfile == Path("/b")


def test_paths_survive_a_change_of_directory(
    started: list[Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = settings_for("--mountpoint", "pve", "--statedir", "a/../b", started=started)
    assert settings.mountpoint == tmp_path / "pve"
    assert settings.statedir == tmp_path / "b"


def test_a_host_without_a_name(
    started: list[Settings],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nameless = os.uname_result(("Linux", "", "6", "1", "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: nameless)
    assert cli.main([]) == 1
    assert "--nodename" in capsys.readouterr().err
    assert settings_for("--nodename", "n", started=started).nodename == "n"


@pytest.mark.parametrize(
    "argv",
    [
        ["--mount", "/x"],  # no abbreviations
        ["--foregr"],
        ["fsck", "--rep"],
        ["--workers", "0"],
        ["--workers", "two"],
        ["--statedir", ""],
        ["--nodename", "a/b"],
        ["--nodename", ".example.com"],
        ["--ipc-name", ""],
        ["--ipc-name", "a/b"],
        ["status", "--ipc-name", 101 * "x"],
        ["mount"],
        ["export"],
        ["import"],
        ["-x"],
    ],
)
def test_wrong_usage_is_refused(
    argv: list[str], started: list[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refusal:
        cli.main(argv)
    assert refusal.value.code == cli.WRONG_USAGE
    assert capsys.readouterr().err.startswith("usage: pmxcfs")
    assert not started


@pytest.mark.parametrize(
    ("argv", "call"),
    [
        (["fsck"], ("fsck", Path("/var/lib/pve-cluster/config.db"), ("repair", False))),
        (["fsck", "/f"], ("fsck", Path("/f"), ("repair", False))),
        (["fsck", "--repair", "/f"], ("fsck", Path("/f"), ("repair", True))),
        (["dump", "--statedir", "/s"], ("dump", Path("/s/config.db"))),
        (["--statedir", "/s", "dump"], ("dump", Path("/s/config.db"))),
        (["dump", "/f"], ("dump", Path("/f"))),
        (["export", "/d"], ("export", Path("/var/lib/pve-cluster/config.db"), Path("/d"))),
        (["export", "/d", "/f"], ("export", Path("/f"), Path("/d"))),
        (["import", "/d", "/f"], ("import_", Path("/d"), Path("/f"))),
    ],
)
def test_a_command_gets_its_database(
    argv: list[str], call: tuple[object, ...], offline_calls: list[tuple[object, ...]]
) -> None:
    assert cli.main(argv) == 3  # the command's own status
    assert offline_calls == [call]


def test_create_pmxcfs_db_imports_a_directory(offline_calls: list[tuple[object, ...]]) -> None:
    assert cli.main_create_database(["/d", "/f"]) == 3
    assert offline_calls == [("import_", Path("/d"), Path("/f"))]


def test_create_pmxcfs_db_needs_both_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main_create_database(["/d"])
    assert "FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (StartError("there is no group 'x'"), 1, "pmxcfs: there is no group 'x'\n"),
        (FileNotFoundError(2, "gone", "/f"), 1, "pmxcfs: /f: gone: check the path\n"),
        (PermissionError(13, "no", "/f"), 3, "pmxcfs: /f: no\n"),
        (StoreError("db: no", errno.EACCES), 3, "pmxcfs: db: no\n"),
        (OSError(28, "full"), 1, "pmxcfs: can't write the output: full: free some space\n"),
        (KeyboardInterrupt(), 130, "pmxcfs: interrupted\n"),
    ],
)
def test_a_failure_is_one_line(
    error: BaseException,
    status: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(settings: Settings) -> int:
        raise error

    monkeypatch.setattr(daemon, "run", fail)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert cli.main([]) == status
    assert capsys.readouterr() == ("", text)


def test_an_ordinary_user_is_told_to_be_root(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(settings: Settings) -> int:
        raise PermissionError(errno.EACCES, "no", "/f")

    monkeypatch.setattr(daemon, "run", fail)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cli.main([]) == 3
    assert capsys.readouterr() == ("", "pmxcfs: /f: no: run the command as root\n")


@pytest.mark.parametrize("argv", [["dump", "{}"], ["fsck", "{}"], ["--help"]])
@pytest.mark.parametrize("is_full", [False, True], ids=["no reader", "full device"])
def test_output_that_can_not_be_written(argv: list[str], is_full: bool, tmp_path: Path) -> None:
    source, database = tmp_path / "source", tmp_path / "config.db"
    source.mkdir()
    for number in range(500):
        (source / f"{number:0200}").touch()
    assert offline.import_(source, database) == 0
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full" if is_full else writer, "wb") as output:
        result = subprocess.run(
            [sys.executable, "-m", "pmxcfs", *(word.format(database) for word in argv)],
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    if is_full:
        os.close(writer)
        assert result.stderr.startswith("pmxcfs: can't write the output: No space left on device")
        assert result.returncode == cli.FAILED
    else:
        assert (result.returncode, result.stderr) == (cli.NO_READER, "")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"pmxcfs {pmxcfs.__version__}\n"


@pytest.mark.parametrize("command", ["pmxcfs", "create_pmxcfs_db"])
def test_the_installed_commands_run_anywhere(command: str, tmp_path: Path) -> None:
    program = Path(sys.executable).parent / command
    result = subprocess.run(
        [program, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"usage: {command}")


@pytest.mark.parametrize("command", ["pmxcfs", "create_pmxcfs_db"])
def test_the_installed_commands_import_no_modules_of_their_users(
    command: str, tmp_path: Path
) -> None:
    foreign.lay_out(tmp_path, f"{sys.version_info.major}.{sys.version_info.minor}")
    environments = foreign.environments(str(tmp_path))

    def run(*argv: str | Path, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False
        )

    assert foreign.SAYS in run(sys.executable, "-c", "", variables=environments[0]).stderr
    for variables in environments:
        result = run(Path(sys.executable).parent / command, "--help", variables=variables)
        assert (result.returncode, result.stderr) == (0, "")


def test_the_module_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "pmxcfs", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == f"pmxcfs {pmxcfs.__version__}\n"


@pytest.mark.parametrize(
    "argv",
    [
        ["ipc", "members", "--json", "--ipc-name", "x"],
        ["ipc", "--json", "--ipc-name", "x", "members"],
        ["--ipc-name", "x", "ipc", "members", "--json"],
    ],
)
def test_options_of_a_question_may_come_anywhere(argv: list[str]) -> None:
    arguments = cli.build_parser().parse_args(argv)
    assert (arguments.question, arguments.ipc_name, arguments.json) == ("members", "x", True)


def test_a_question_without_options_has_the_defaults() -> None:
    arguments = cli.build_parser().parse_args(["ipc", "members"])
    assert (arguments.ipc_name, arguments.json) == (DEFAULTS.ipc_name, False)


def test_a_property_starts_with_a_lower_case_letter(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.build_parser().parse_args(["ipc", "property", "Name"])
    assert "starts with a lower-case letter: 'Name'" in capsys.readouterr().err
