"""The switch of the quorum state: all that the daemon updates when quorum is gained or lost.

Contract: docs/spec/cluster.md, "Quorum and configuration".
"""

import logging

from pmxcfs.fuse.kernel_cache import KernelCache
from pmxcfs.replica.quorum import QuorumFlag
from pmxcfs.status.members import Members

_log = logging.getLogger("pmxcfs.quorum")


class QuorumSwitch:
    """Sets the quorum flag, and updates ``.members`` and the modes of all entries accordingly."""

    def __init__(self, flag: QuorumFlag, members: Members, cache: KernelCache) -> None:
        self._flag = flag
        self._members = members
        self._cache = cache

    def set(self, is_quorate: bool) -> None:
        """Make this node quorate or not. Needs the tree's lock."""
        if is_quorate == self._flag.is_quorate:
            return
        self._flag.is_quorate = is_quorate
        _log.info("node has quorum" if is_quorate else "node lost quorum")
        self._members.set_quorate(is_quorate)
        self._cache.on_quorum()
