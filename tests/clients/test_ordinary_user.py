"""Every command as an ordinary user: what it can't do, by name, and the next step.

The paths are those of a mount namespace that each command gets: pytest's directories and this
checkout may be closed to other users.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ipc_name, mounted
from tests.places import ROOT

pytestmark = pytest.mark.needs_fuse

TIMEOUT = 60.0  # seconds
HERE = "/mnt"  # the test's directory, as the commands see it
STATE = f"{HERE}/state"
IN_NAMESPACE = 'mount --bind "$0" /mnt; cd /; exec "$@"'
# All modules of commands are imported before the program gives up its rights.
PROGRAM = """
import os, pwd, sys
from pmxcfs.cli import checkpoint, conflicts, main, offline, query
from pmxcfs.daemon import daemon
account = pwd.getpwnam("nobody")
os.setgroups([])
os.setgid(account.pw_gid)
os.setuid(account.pw_uid)
run = main.main_create_database if sys.argv[1] == "create_pmxcfs_db" else main.main
sys.exit(run(sys.argv[2:]))
"""
AS_ROOT = "Permission denied: run the command as root"
ONLY_ROOT = "only root can mount the file system: run it as root, as with sudo"

# Command, exit status, and the line that it prints.
COMMANDS: list[tuple[str, int, str]] = [
    ("pmxcfs dump /mnt/state/config.db", 3, f"{STATE}/config.db can't be read: {AS_ROOT}"),
    ("pmxcfs dump --statedir /mnt/state", 3, f"{STATE}/config.db can't be read: {AS_ROOT}"),
    ("pmxcfs export /mnt/open/out /mnt/state/config.db", 3, f"{STATE}/config.db can't be read: "),
    ("pmxcfs export /mnt/closed /mnt/open/config.db", 3, f"{HERE}/closed: {AS_ROOT}"),
    ("pmxcfs export /mnt/closed/out /mnt/open/config.db", 3, f"{HERE}/closed: {AS_ROOT}"),
    ("pmxcfs fsck /mnt/state/config.db", 3, f"{STATE}/config.db can't be read: {AS_ROOT}"),
    ("pmxcfs fsck --repair /mnt/state/config.db", 3, f"{STATE}/config.db can't be read: {AS_ROOT}"),
    ("pmxcfs checkpoint --statedir /mnt/state", 3, f"{STATE}/config.db: {AS_ROOT}"),
    ("pmxcfs import --statedir /mnt/new /mnt/open", 3, f"{HERE}/new/config.db can't be opened: "),
    ("pmxcfs import --statedir /mnt/new /mnt/closed", 3, f"{HERE}/closed: {AS_ROOT}"),
    ("create_pmxcfs_db /mnt/open /mnt/new/c.db", 3, f"{HERE}/new/c.db can't be opened: {AS_ROOT}"),
    ("create_pmxcfs_db /mnt/closed /mnt/new/c.db", 3, f"{HERE}/closed: {AS_ROOT}"),
    ("create_pmxcfs_db /mnt/secret /mnt/open/c.db", 3, f"{HERE}/secret/file: {AS_ROOT}"),
    ("pmxcfs conflicts list --statedir /mnt/state", 3, f"{STATE}/conflicts"),
    ("pmxcfs conflicts show 1.db --statedir /mnt/state", 3, f"{STATE}/conflicts"),
    ("pmxcfs conflicts export 1.db /mnt/open/o --statedir /mnt/state", 3, f"{STATE}/conflicts"),
    ("pmxcfs conflicts done 1.db --statedir /mnt/state", 3, f"{STATE}/conflicts"),
    ("pmxcfs --local --foreground", 3, ONLY_ROOT),
    ("pmxcfs --local", 3, ONLY_ROOT),
    ("pmxcfs", 3, ONLY_ROOT),
    ("pmxcfs ipc members --ipc-name nobody-listens", 3, "no pmxcfs listens as 'nobody-listens'"),
    # What is wrong for root, too.
    ("pmxcfs dump /mnt/open/none.db", 1, f"{HERE}/open/none.db can't be read: No such file or d"),
    ("pmxcfs fsck /mnt/open/text", 1, f"{HERE}/open/text "),
    ("pmxcfs export /mnt/open /mnt/open/config.db", 1, f"{HERE}/open is not empty: name a new dir"),
    ("create_pmxcfs_db /mnt/open /mnt/open/text", 1, f"{HERE}/open/text already exists: move it"),
    ("pmxcfs nonsense", 64, "error: argument COMMAND: invalid choice: 'nonsense'"),
]


def in_namespace(directory: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command that sees *directory* as HERE."""
    argv = ["unshare", "--mount", "sh", "-ec", IN_NAMESPACE, directory, *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT, check=False)


def run(directory: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as nobody."""
    return in_namespace(directory, sys.executable, "-c", PROGRAM, *command.split())


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory as the daemon leaves it, directories of root, and one open to all."""
    top = tmp_path_factory.mktemp("user")
    top.chmod(0o755)
    for name, mode in (("state", 0o755), ("closed", 0o700), ("new", 0o755), ("secret", 0o755)):
        (top / name).mkdir(mode=mode)
    (top / "secret" / "file").write_text("secret\n")
    (top / "secret" / "file").chmod(0o600)
    with mounted(top / "daemon") as daemon:
        (daemon.path / "file").write_text("content\n")
    (top / "open").mkdir()
    (top / "open").chmod(0o777)
    (top / "open" / "text").write_text("no database\n")
    for place, mode in (("state", 0o600), ("open", 0o644)):
        shutil.copy(daemon.state / "config.db", top / place / "config.db")
        (top / place / "config.db").chmod(mode)
    (top / "state" / "conflicts").mkdir(mode=0o700)
    shutil.copy(daemon.state / "config.db", top / "state" / "conflicts" / "1.db")
    return top


@pytest.mark.parametrize(("command", "status", "line"), COMMANDS, ids=[c for c, _, _ in COMMANDS])
def test_a_command_says_what_it_may_not_do(
    directory: Path, command: str, status: int, line: str
) -> None:
    result = run(directory, command)
    program = command.split()[0]
    *usage, last = result.stderr.splitlines()
    assert (result.returncode, result.stdout) == (status, "")
    assert last.startswith(f"{program}: {line}")
    assert bool(usage) == (status == 64), result.stderr
    assert "Traceback" not in result.stderr
    if status == 3 and "ipc" not in command:
        assert "run it as root" in last or "run the command as root" in last


def test_what_an_ordinary_user_may_do(directory: Path) -> None:
    for command in (
        "pmxcfs --version",
        "pmxcfs dump /mnt/open/config.db",
        "pmxcfs fsck /mnt/open/config.db",
        "pmxcfs export /mnt/open/exported /mnt/open/config.db",
        "create_pmxcfs_db /mnt/open/exported /mnt/open/made.db",
        "pmxcfs conflicts list --statedir /mnt/open",
    ):
        result = run(directory, command)
        assert (result.returncode, result.stderr) == (0, ""), command
    assert (directory / "open" / "exported" / "file").read_text() == "content\n"
    shutil.rmtree(directory / "open" / "exported")
    (directory / "open" / "made.db").unlink()


def test_a_running_daemon_tells_an_ordinary_user_why_not(tmp_path: Path) -> None:
    with mounted(tmp_path) as daemon:
        daemon.expect_log("refused a connection")
        name = ipc_name(tmp_path)
        result = run(tmp_path, f"pmxcfs ipc members --ipc-name {name}")
        assert (result.returncode, result.stdout) == (3, "")
        assert result.stderr == (
            "pmxcfs: permission denied: only root and the daemon's group may connect to "
            f"{name!r}: ask as root\n"
        )
        result = run(tmp_path, f"pmxcfs status --ipc-name {name}")
        assert (result.returncode, result.stderr) == (3, "")
        assert result.stdout.splitlines() == [
            "state     unknown: permission denied: only root and the daemon's group may connect to "
            f"{name!r}: ask as root",
            "to do     ask as root",
        ]


@pytest.mark.parametrize("target", ["run", "demo"])
def test_make_says_that_it_needs_root_before_it_does_anything(tmp_path: Path, target: str) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path / "Makefile")
    tmp_path.chmod(0o755)
    as_nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    make = ["make", "--no-print-directory", "-C", HERE, target]
    result = in_namespace(tmp_path, *as_nobody, *make)
    first, *rest = result.stderr.splitlines()
    assert (result.returncode, result.stdout) == (2, "")  # make's for a failure
    assert first == "only root can mount: run it as root, as with sudo"
    assert len(rest) == 1  # make's own line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Makefile"]
