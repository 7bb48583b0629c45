"""What three nodes of the original saw in one session, in total order: ``cpg_order_node*``."""

import gzip
import json
from typing import Any

from tests.places import VECTORS

CONFIGURATION = VECTORS / "corosync.conf"  # what the first of them started with
FINAL_CHECKSUM = "9ae7312fb0c4217262a2bd8615a12b4d787ae59eec33aa6642ba115e80aa3ecf"
PID = 27  # of each


def events_of(node: int) -> list[dict[str, Any]]:
    """Return what one node saw: membership changes, and messages with their bytes in hex."""
    with gzip.open(VECTORS / f"cpg_order_node{node}.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]
