"""The quorum switch: what is updated when this node gains or loses quorum, and that it is once."""

import logging

import pytest

from pmxcfs._core import Tree
from pmxcfs.daemon.quorum import QuorumSwitch
from pmxcfs.fuse.kernel_cache import KernelCache
from pmxcfs.fuse.notifier import Notifier
from pmxcfs.replica.quorum import QuorumFlag
from pmxcfs.status.members import Members


def test_a_change_reaches_the_flag_the_members_and_the_kernel_cache(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "pmxcfs.quorum")
    flag, members, notifier = QuorumFlag(is_quorate=False), Members("a"), Notifier(entry_threads=1)
    known = {1: Tree().root}
    cache = KernelCache(notifier, Tree(), known, handles={}, may_be_absent=lambda node, name: False)
    switch = QuorumSwitch(flag, members, cache)
    switch.set(True)
    assert (flag.is_quorate, members.quorate) == (True, True)
    assert notifier.sequence == 1  # the mode of the root changes
    switch.set(True)
    assert notifier.sequence == 1
    switch.set(False)
    assert (flag.is_quorate, members.quorate) == (False, False)
    assert caplog.messages == ["node has quorum", "node lost quorum"]
