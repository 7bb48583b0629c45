"""The quorum flag: whether this node may change the tree.

The daemon sets the flag with the tree's lock held. Contract: docs/spec/cluster.md, "Quorum and
configuration".
"""


class QuorumFlag:
    """Set in local mode, and in a cluster while corosync says that this node is quorate."""

    def __init__(self, *, is_quorate: bool) -> None:
        self.is_quorate = is_quorate
