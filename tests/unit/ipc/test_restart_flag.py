"""The restart flag: a file in the run directory, which does not follow links."""

import os
import stat
from pathlib import Path

from pmxcfs.ipc.server import make_flag


def test_the_flag_replaces_what_is_there_and_follows_no_link(tmp_path: Path) -> None:
    victim, flag = tmp_path / "victim", tmp_path / "flag"
    flag.symlink_to(victim)
    for _ in range(2):
        make_flag(flag, gid=os.getgid())
        assert stat.S_IMODE(flag.lstat().st_mode) & 0o037 == 0
        assert flag.lstat().st_gid == os.getgid()
    assert not flag.is_symlink()
    assert not victim.exists()
