"""Commits to a database as fast as it can until it is killed: ``busy_writer.py DATABASE``.

Each transaction writes a number to ``last`` and, a hundred times, to one of fifty other files.
The number is printed after the commit.
"""

import sys
from pathlib import Path

from tests.fakes.doubles.store import Store

CHECKPOINT_EVERY = 10  # transactions


def main(path: Path) -> None:
    """Commit without end."""
    store = Store(path)
    for number in range(1 << 30):
        content = b"%d" % number
        store.write(f"f{number % 50}", content * 100)
        store.put("last", content)
        print(number, flush=True)
        if number % CHECKPOINT_EVERY == 0:
            store.database.checkpoint()


main(Path(sys.argv[1]))
