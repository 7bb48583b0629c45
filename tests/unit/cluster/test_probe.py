"""The probe of the way to corosync and back."""

from pmxcfs.cluster.probe import Probe


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_probe_is_overdue_until_a_message_of_this_node_comes_back() -> None:
    clock = Clock()
    sent: list[float] = []

    def send() -> bool:
        sent.append(clock.now)
        return True

    probe = Probe(send, clock=clock)
    assert probe.seconds_without_echo == 0
    probe.probe()
    clock.now += 10.0
    probe.probe()  # the first is still under way
    assert (probe.seconds_without_echo, sent) == (10.0, [100.0])
    probe.echoed()
    assert probe.seconds_without_echo == 0
    probe.probe()
    assert sent == [100.0, 110.0]


def test_a_node_without_an_address_sends_no_probe() -> None:
    clock = Clock()
    probe = Probe(lambda: False, clock=clock)
    probe.probe()
    clock.now += 10.0
    assert probe.seconds_without_echo == 0
