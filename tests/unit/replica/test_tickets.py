"""Tickets and the signals that threads wait for."""

from concurrent.futures import ThreadPoolExecutor

from pmxcfs.messages import Mkdir
from pmxcfs.replica.tickets import Signal, Ticket

DEADLINE = 5.0  # seconds


def test_waiting_for_a_signal_times_out_until_it_is_given() -> None:
    signal = Signal()
    assert not signal.wait(0)
    assert not signal.wait(0.01)
    signal.give()
    signal.give()
    assert signal.wait(0)
    assert signal.wait(DEADLINE)


def test_a_signal_wakes_all_waiting_threads() -> None:
    signal = Signal()
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(signal.wait, DEADLINE) for _ in range(4)]
        signal.give()
        assert all(each.result(DEADLINE) for each in waiting)


def test_a_ticket_that_is_finished_twice_is_done_once() -> None:
    ticket = Ticket(Mkdir("a"))
    done = ticket.done()
    assert done is ticket.done()
    ticket.finish()
    ticket.finish()
    assert ticket.is_done
    assert done.wait(0)
