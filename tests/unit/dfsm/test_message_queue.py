"""The order of queued changes."""

from pmxcfs.dfsm.message_queue import MessageQueue, QueuedChange
from tests.fakes.simulation.single_machine import (
    ONE,
    THREE,
    TWO,
    change,
)


def test_the_message_queue_is_in_the_order_of_serials_and_then_of_arrival() -> None:
    queue = MessageQueue()
    arrived = [QueuedChange(s, change(n)) for s, n in ((ONE, 2), (TWO, 1), (THREE, 2), (ONE, 1))]
    for queued in arrived:
        queue.add(queued)
    assert queue.take([TWO]) == [arrived[1]]
    assert queue.take_all() == [arrived[3], arrived[0], arrived[2]]
    assert len(queue) == 0
