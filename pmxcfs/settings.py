"""What the command line decides about one run of the daemon.

Paths and flags only, fixed for the life of the process. Whoever needs one of them gets it from
``daemon``; nothing else reads the command line or the environment.
"""

from dataclasses import dataclass
from pathlib import Path

DATABASE_NAME = "config.db"  # in the state directory


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run of the daemon. The defaults are those of a Proxmox VE node."""

    nodename: str  # up to the first dot
    mountpoint: Path = Path("/etc/pve")
    statedir: Path = Path("/var/lib/pve-cluster")
    rundir: Path = Path("/run/pve-cluster")
    pidfile: Path = Path("/run/pve-cluster.pid")
    group: str = "www-data"
    corosync_conf: Path = Path("/etc/corosync/corosync.conf")
    rrddir: Path = Path("/var/lib/rrdcached/db")
    rrdcached_socket: Path = Path("/var/run/rrdcached.sock")
    ipc_name: str = "pve2"
    workers: int | None = None  # threads that answer the kernel; None: what suits the mode
    local: bool = False  # no cluster, always quorate
    foreground: bool = False
    debug: bool = False
    test_control: bool = False  # open a socket that tests steer the daemon by

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.statedir / DATABASE_NAME

    @property
    def lockfile(self) -> Path:
        """The file whose lock says that a daemon runs on this state directory."""
        return self.statedir / ".pmxcfs.lockfile"

    @property
    def control_socket(self) -> Path:
        """The Unix socket that ``--test-control`` opens."""
        return self.rundir / "control.sock"
