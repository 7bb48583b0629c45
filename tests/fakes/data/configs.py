"""Sample cluster configurations, as corosync.conf would give them."""

from pmxcfs.messages import ClusterConfig, ClusterNode


def config(*names: str, version: int = 1, first: int = 1) -> ClusterConfig:
    """Return a cluster of nodes with these names; their ids count up from *first*."""
    nodes = [
        ClusterNode(name, nodeid, f"10.0.0.{nodeid}", 1) for nodeid, name in enumerate(names, first)
    ]
    return ClusterConfig("lab", version, tuple(nodes))
