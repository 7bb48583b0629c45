"""One recorded session of three original daemons: the events of the tree group on each node.

The recordings are ``tests/vectors/cpg_order_node*.jsonl.gz``, in the total order of CPG.
"""

import gzip
import json
from typing import Any

from tests.places import VECTORS

CONFIGURATION = VECTORS / "corosync.conf"  # the only file that each fresh database held
FINAL_CHECKSUM = "9ae7312fb0c4217262a2bd8615a12b4d787ae59eec33aa6642ba115e80aa3ecf"
PID = 27  # of each recorded daemon


def events_of(node: int) -> list[dict[str, Any]]:
    """Return the events of node 1, 2 or 3: membership changes, and messages as bytes in hex."""
    with gzip.open(VECTORS / f"cpg_order_node{node}.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]
