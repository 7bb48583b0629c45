"""The settings of one run of the daemon: paths and flags from the command line.

They are constant for the life of the process. ``cli`` reads the command line, ``daemon`` passes
each setting to the object that needs it; nothing else reads the command line or the environment.
Contract: docs/spec/operations.md, "Command line".
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

DATABASE_NAME = "config.db"  # in the state directory
JOURNAL_NAME = "journal"  # a directory in the state directory
LOCKFILE_NAME = ".pmxcfs.lockfile"  # in the state directory
HISTORY_SIZE = 64 << 20  # bytes that the history of changes takes at most
HISTORY_AGE = 180  # days that a change stays in it
HISTORY_SHARE = 3  # of what is free on the file system, it takes at most one part of so many
DAY = 86400  # seconds
SESSIONS = ("auto", "uring", "native", "llfuse")  # ways to speak with the kernel
PERMISSIONS = ("strict", "lenient")  # whether a chmod or chown without effect is refused


class HistoryLimits(NamedTuple):
    """How much of the history is kept, and whether what private files hold is kept in it."""

    size: int = HISTORY_SIZE  # bytes
    age: int = HISTORY_AGE * DAY  # seconds
    keeps_private: bool = False


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings. The defaults are those of a Proxmox VE node."""

    nodename: str  # the host name up to the first dot
    mountpoint: Path = Path("/etc/pve")
    statedir: Path = Path("/var/lib/pve-cluster")
    rundir: Path = Path("/run/pve-cluster")
    pidfile: Path = Path("/run/pve-cluster.pid")
    group: str = "www-data"
    corosync_conf: Path = Path("/etc/corosync/corosync.conf")
    rrddir: Path = Path("/var/lib/rrdcached/db")
    rrdcached_socket: Path = Path("/var/run/rrdcached.sock")
    ipc_name: str = "pve2"
    fuse: str = "auto"  # one of SESSIONS
    workers: int | None = None  # llfuse's threads; None: the default
    permissions: str = "strict"  # one of PERMISSIONS
    history_size: int = HISTORY_SIZE  # bytes
    history_age: int = HISTORY_AGE  # days
    history_private: bool = False  # whether what private files hold stays in the history
    local: bool = False  # local mode: no cluster, always quorate
    foreground: bool = False
    debug: bool = False
    test_control: bool = False  # open the control socket that tests use

    @property
    def database(self) -> Path:
        """The path of the SQLite database."""
        return self.statedir / DATABASE_NAME

    @property
    def journal(self) -> Path:
        """The path of the directory that has the journal."""
        return self.statedir / JOURNAL_NAME

    @property
    def history(self) -> HistoryLimits:
        """How much of the history is kept."""
        return HistoryLimits(self.history_size, self.history_age * DAY, self.history_private)

    @property
    def lockfile(self) -> Path:
        """The path of the file that a running daemon keeps locked, so that no second one starts."""
        return self.statedir / LOCKFILE_NAME

    @property
    def control_socket(self) -> Path:
        """The path of the Unix socket that ``--test-control`` opens."""
        return self.rundir / "control.sock"
