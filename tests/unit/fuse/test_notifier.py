"""The notifier: the order of notifications, and that a blocked one delays no other directory."""

import threading
import time
from collections.abc import Iterator

import pytest

from pmxcfs.fuse import notifier as module
from pmxcfs.fuse.notifier import AGAIN_AFTER, Name, Notifier
from tests.conftest import ExpectLog
from tests.fakes.doubles.kernel import TIMEOUT, Kernel

THREADS = 2


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def notifier() -> Iterator[Notifier]:
    running = Notifier(entry_threads=THREADS)
    yield running
    running.close(TIMEOUT)


def wait_until_handed(kernel: Kernel, notifier: Notifier) -> None:
    """Block until all queued notifications have been sent."""
    deadline = time.monotonic() + TIMEOUT
    while notifier.handed != notifier.sequence:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_after_an_entry_its_inode_is_sent(kernel: Kernel, notifier: Notifier) -> None:
    notifier.entry(Name(1, b"f"), inode=7, pages=True)
    notifier.start(kernel.channel)
    kernel.wait_for(lambda: len(kernel.sent) == 2)
    assert kernel.sent == [("entry", 1, b"f", True), ("inode", 7, True)]


def test_an_entry_without_its_inode_is_not_only_expired(kernel: Kernel, notifier: Notifier) -> None:
    notifier.entry(Name(1, b"f"))
    notifier.start(kernel.channel)
    kernel.wait_for(lambda: len(kernel.sent) == 1)
    assert kernel.sent == [("entry", 1, b"f", False)]


def test_inodes_are_sent_though_every_entry_thread_is_blocked(
    kernel: Kernel, notifier: Notifier
) -> None:
    notifier.start(kernel.channel)
    with kernel.locked(1, 2):
        notifier.entry(Name(1, b"f"), inode=7)
        notifier.entry(Name(2, b"f"))
        kernel.wait_for(lambda: len(kernel.blocked) == 2)
        notifier.inode(8, pages=True)
        kernel.wait_for(lambda: kernel.sent == [("inode", 8, True)])
    kernel.wait_for(lambda: ("inode", 7, False) in kernel.sent)


def test_a_blocked_directory_delays_no_other_directory(kernel: Kernel, notifier: Notifier) -> None:
    notifier.start(kernel.channel)
    with kernel.locked(1):
        for number in range(50):
            notifier.entry(Name(1, b"%d" % number))
        for directory in range(2, 52):
            notifier.entry(Name(directory, b"f"))
        kernel.wait_for(lambda: len(kernel.sent) == 50)
        assert {sent[1] for sent in kernel.sent} == set(range(2, 52))
        assert len(kernel.blocked) == 1
    kernel.wait_for(lambda: len(kernel.sent) == 100)
    assert [sent[2] for sent in kernel.sent[50:]] == [b"%d" % number for number in range(50)]


def test_an_inode_that_is_queued_twice_is_sent_once(kernel: Kernel, notifier: Notifier) -> None:
    notifier.inode(7, pages=False)
    notifier.inode(8, pages=False)
    notifier.inode(7, pages=True)
    notifier.start(kernel.channel)
    kernel.wait_for(lambda: len(kernel.sent) == 2)
    assert kernel.sent == [("inode", 7, True), ("inode", 8, False)]


def test_a_replaced_and_written_entry_is_not_only_expired(
    kernel: Kernel, notifier: Notifier
) -> None:
    notifier.entry(Name(1, b"f"), inode=7)
    notifier.entry(Name(1, b"f"))
    notifier.entry(Name(1, b"f"), inode=8, pages=True)
    notifier.entry(Name(1, b"f"), inode=8)
    notifier.start(kernel.channel)
    kernel.wait_for(lambda: len(kernel.sent) == 3)
    assert kernel.sent == [("entry", 1, b"f", False), ("inode", 7, False), ("inode", 8, True)]


def test_an_entry_that_changes_while_it_is_being_sent_is_sent_again(
    kernel: Kernel, notifier: Notifier
) -> None:
    notifier.start(kernel.channel)
    with kernel.locked(1):
        notifier.entry(Name(1, b"f"))
        kernel.wait_for(lambda: len(kernel.blocked) == 1)
        notifier.entry(Name(1, b"f"))
        notifier.entry(Name(1, b"f"))
    kernel.wait_for(lambda: len(kernel.sent) == 2)
    wait_until_handed(kernel, notifier)
    assert kernel.sent == [("entry", 1, b"f", False)] * 2


def test_handed_reaches_a_sequence_when_all_before_it_is_sent(
    kernel: Kernel, notifier: Notifier
) -> None:
    assert (notifier.sequence, notifier.handed) == (0, 0)
    notifier.inode(7, pages=True)
    first = notifier.sequence
    assert notifier.handed < first
    notifier.start(kernel.channel)
    wait_until_handed(kernel, notifier)
    with kernel.locked(1):
        notifier.entry(Name(1, b"f"), inode=7)
        blocked = notifier.sequence
        notifier.inode(8, pages=True)
        later = notifier.sequence
        kernel.wait_for(lambda: ("inode", 8, True) in kernel.sent)
        assert first <= notifier.handed < blocked < later
    wait_until_handed(kernel, notifier)
    assert notifier.handed >= later


def test_a_sequence_covers_a_notification_merged_into_an_earlier_one(
    kernel: Kernel, notifier: Notifier
) -> None:
    notifier.inode(7, pages=False)
    notifier.inode(7, pages=True)
    sequence = notifier.sequence
    notifier.start(kernel.channel)
    kernel.wait_for(lambda: kernel.sent == [("inode", 7, True)])
    wait_until_handed(kernel, notifier)
    assert notifier.handed >= sequence


def test_attributes_are_sent_once_more(kernel: Kernel, notifier: Notifier) -> None:
    notifier.start(kernel.channel)
    begin = time.monotonic()
    notifier.attributes([7, 8])
    both = [("inode", 7, False), ("inode", 8, False)]
    kernel.wait_for(lambda: kernel.sent_since(begin + AGAIN_AFTER) == both)


def test_a_repeated_invalidation_needs_no_thread_of_its_own(
    kernel: Kernel, notifier: Notifier
) -> None:
    notifier.start(kernel.channel)
    before = threading.active_count()
    for node in range(2, 100):
        notifier.attributes([node])
    assert threading.active_count() == before


def test_close_sends_no_more_and_does_not_wait_for_a_blocked_thread(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pmxcfs.fuse.notifier.AGAIN_AFTER", TIMEOUT)
    notifier = Notifier(entry_threads=THREADS)
    notifier.start(kernel.channel)
    with kernel.locked(1):
        notifier.entry(Name(1, b"f"), inode=7)
        kernel.wait_for(lambda: len(kernel.blocked) == 1)
        notifier.attributes([9])
        kernel.wait_for(lambda: kernel.sent == [("inode", 9, False)])
        begin = time.monotonic()
        notifier.close(0.1)
        assert time.monotonic() - begin < TIMEOUT
        notifier.inode(8, pages=True)
        assert kernel.sent == [("inode", 9, False)]
    notifier.close(TIMEOUT)
    assert kernel.sent == [("inode", 9, False), ("entry", 1, b"f", True)]


def test_an_error_of_the_kernel_is_a_warning(
    kernel: Kernel, notifier: Notifier, expect_log: ExpectLog
) -> None:
    expect_log("can.t invalidate the kernel.s cache: .*no such device")
    kernel.failure = OSError(19, "no such device")
    notifier.start(kernel.channel)
    notifier.inode(7, pages=True)
    notifier.entry(Name(1, b"f"))
    wait_until_handed(kernel, notifier)
    assert len(kernel.sent) == 2


def test_a_thread_is_made_for_each_blocked_directory_and_ends_when_it_is_idle(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IDLE_TIMEOUT", 0.01)
    before = threading.active_count()
    notifier = Notifier(entry_threads=5)
    notifier.start(kernel.channel)
    try:
        assert threading.active_count() == before + 2
        with kernel.locked(*range(1, 6)):
            for directory in range(1, 6):
                notifier.entry(Name(directory, b"f"))
            kernel.wait_for(lambda: len(kernel.blocked) == 5)
            assert threading.active_count() == before + 6
        deadline = time.monotonic() + TIMEOUT
        while threading.active_count() > before + 2:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        notifier.entry(Name(9, b"f"))
        kernel.wait_for(lambda: ("entry", 9, b"f", False) in kernel.sent)
    finally:
        notifier.close(TIMEOUT)


@pytest.mark.parametrize("has_epochs", [True, False])
def test_all_entries_are_expired_at_once_if_the_kernel_can(
    notifier: Notifier, has_epochs: bool
) -> None:
    kernel = Kernel(has_epochs=has_epochs)
    assert not notifier.expire_all_entries(), "there is no mount yet"
    notifier.start(kernel.channel)
    assert notifier.expire_all_entries() == has_epochs
    assert kernel.sent == [("all entries",)] * has_epochs
