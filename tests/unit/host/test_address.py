"""The lookup of this node's address: the choice, the reason of a failure, the retries."""

import socket
import threading
from collections.abc import Callable

import pytest

from pmxcfs.host import address
from pmxcfs.host.address import AddressLookup, resolve

DEADLINE = 30.0  # seconds for the thread
Answer = list[str] | OSError


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that sets the resolver's answers, one a lookup; the last is repeated."""

    def set_answers(*answers: Answer) -> None:
        remaining = list(answers)

        def getaddrinfo(name: str, port: None, *, type: int) -> list[tuple[object, ...]]:
            now = remaining.pop(0) if len(remaining) > 1 else remaining[0]
            if isinstance(now, OSError):
                raise now
            return [(socket.AF_INET, type, 6, "", (text, 0)) for text in now]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    return set_answers


@pytest.mark.parametrize(
    ("found", "taken"),
    [
        (["192.0.2.1"], "192.0.2.1"),
        (["127.0.1.1", "192.0.2.1", "192.0.2.2"], "192.0.2.1"),
        (["::1", "fe80::1%eth0"], "fe80::1"),
        (["2001:db8::7"], "2001:db8::7"),
    ],
)
def test_the_first_address_that_other_nodes_can_reach_is_taken(
    found: list[str], taken: str, answer: Callable[..., None]
) -> None:
    answer(found)
    assert resolve("node1") == (taken, "")


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (["127.0.0.1", "::1", "127.0.0.1"], "only loopback addresses: 127.0.0.1, ::1"),
        (socket.gaierror(-2, "Name or service not known"), "[Errno -2] Name or service not known"),
    ],
)
def test_a_name_without_a_usable_address_has_a_reason(
    found: Answer, reason: str, answer: Callable[..., None]
) -> None:
    answer(found)
    assert resolve("node1") == (None, reason)


def test_an_invalid_host_name_has_a_reason() -> None:
    found, reason = resolve("x" * 64 + ".")
    assert found is None
    assert reason


@pytest.mark.expect_log(
    r"can't resolve node name node1 .*: only loopback addresses: 127.0.1.1; add"
)
def test_the_lookup_is_repeated_until_it_succeeds(
    answer: Callable[..., None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(address, "RETRY_INTERVAL", 0.001)
    answer(["127.0.1.1"], ["127.0.1.1"], ["192.0.2.1"])
    has_found = threading.Event()
    found: list[str] = []

    def on_found(text: str) -> None:
        found.append(text)
        has_found.set()

    AddressLookup("node1", on_found).start()
    assert has_found.wait(DEADLINE)
    assert found == ["192.0.2.1"]
    assert len(caplog.records) == 1  # one warning, not one for each attempt


def test_a_stopped_lookup_ignores_a_late_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolver answers only after the stop."""
    is_asked, may_answer = threading.Event(), threading.Event()

    def resolve_slowly(nodename: str) -> address.Resolution:
        is_asked.set()
        may_answer.wait(DEADLINE)
        return address.Resolution("192.0.2.1", "")

    monkeypatch.setattr(address, "resolve", resolve_slowly)
    found: list[str] = []
    lookup = AddressLookup("node1", found.append)
    lookup.start()
    assert is_asked.wait(DEADLINE)
    lookup.stop()
    may_answer.set()
    for thread in lookup_threads():
        thread.join(DEADLINE)
    assert not lookup_threads()
    assert found == []


def lookup_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "address"]
