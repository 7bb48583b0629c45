"""Databases with many small files, from which nodes of a cluster start."""

import shutil
from pathlib import Path

from pmxcfs.cli import offline
from tests.cluster.lab import Member, corosync_conf
from tests.cluster.together import Cluster

FILES_IN_FOLDER = 99  # a folder and its files are 100 entries


def give_large_tree(cluster: Cluster, scratch: Path, *nodes: Member, entries: int) -> None:
    """Give *nodes*, on which no daemon runs, a database of that many *entries* and some more."""
    source, database = scratch / "source", scratch / "config.db"
    for folder in range(entries // (FILES_IN_FOLDER + 1)):
        (source / f"d{folder}").mkdir(parents=True)
        for file in range(FILES_IN_FOLDER):
            (source / f"d{folder}" / f"f{file}").write_bytes(b"%d %d" % (folder, file))
    text = corosync_conf(cluster.nodes, token=cluster.token)
    (source / "corosync.conf").write_text(text)
    assert offline.import_(source, database) == 0
    for node in nodes:
        shutil.copyfile(database, node.database)
        node.database.chmod(0o600)
