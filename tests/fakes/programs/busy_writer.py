"""Commits to a database as fast as it can until it is killed: ``busy_writer.py DATABASE``.

Each transaction writes a number to ``last`` and, a hundred times, to one of fifty other files.
The number is printed after the commit.
"""

import sys
from pathlib import Path

from pmxcfs.storage import database
from pmxcfs.storage.checkpointer import Checkpointer
from tests.fakes.doubles.store import Store


def main(path: Path) -> None:
    """Commit without end, with a checkpoint every few transactions."""
    database.CHECKPOINT_AFTER = 1 << 16
    checkpointer = Checkpointer()
    store = Store(path, on_growth=checkpointer.request)
    checkpointer.start(store.database)
    for number in range(1 << 30):
        content = b"%d" % number
        store.write(f"f{number % 50}", content * 100)
        store.put("last", content)
        print(number, flush=True)


main(Path(sys.argv[1]))
