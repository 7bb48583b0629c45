"""Waiting for a ticket."""

from concurrent.futures import ThreadPoolExecutor

from pmxcfs.messages import Mkdir
from pmxcfs.replica.tickets import Signal, Ticket

PATIENCE = 5.0  # seconds


def test_a_signal_is_waited_for_in_vain_until_it_is_given() -> None:
    signal = Signal()
    assert not signal.wait(0)
    assert not signal.wait(0.01)
    signal.give()
    signal.give()
    assert signal.wait(0)
    assert signal.wait(PATIENCE)


def test_a_signal_lets_go_all_who_wait() -> None:
    signal = Signal()
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(signal.wait, PATIENCE) for _ in range(4)]
        signal.give()
        assert all(each.result(PATIENCE) for each in waiting)


def test_a_ticket_that_is_finished_twice_is_done_once() -> None:
    ticket = Ticket(Mkdir("a"))
    done = ticket.done()
    assert done is ticket.done()
    ticket.finish()
    ticket.finish()
    assert ticket.is_done
    assert done.wait(0)
