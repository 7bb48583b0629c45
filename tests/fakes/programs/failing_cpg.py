"""Calls ``Cpg`` on the preloaded libcpg.c and prints the outcomes as JSON.

The argument is a JSON list: the name of a function of this file, and its arguments.
"""

import ctypes
import json
import sys
from collections.abc import Callable

from pmxcfs._cpg import Cpg
from pmxcfs.errors import ClusterError

FAKE = ctypes.CDLL(None)
NAME = "pve_dcdb_v1"

CALLS: dict[str, Callable[[Cpg], object]] = {
    "cpg_join": lambda cpg: cpg.join(NAME),
    "cpg_leave": lambda cpg: cpg.leave(NAME),
    "cpg_mcast_joined": lambda cpg: cpg.mcast(b"data"),
    "cpg_dispatch": lambda cpg: cpg.dispatch_one(),
    "cpg_local_get": lambda cpg: cpg.local_nodeid(),
    "cpg_max_atomic_msgsize_get": lambda cpg: cpg.max_message_size(),
}


class Sink:
    """Records deliveries, and raises ``failure`` if it is set."""

    def __init__(self) -> None:
        self.seen: list[object] = []
        self.failure: BaseException | None = None

    def on_deliver(self, member: object, data: bytes) -> None:
        self.seen.append((member, data.decode()))
        if self.failure:
            raise self.failure

    def on_confchg(self, *_lists: object) -> None:
        raise AssertionError("a membership change that was not injected")


def set_answer(call: str, status: int) -> None:
    FAKE.fake_answer(call.encode(), status)


def outcome(call: Callable[[], object]) -> object:
    """Return the result, or the exception that was raised, as JSON."""
    try:
        return call()
    except ClusterError as error:
        return [type(error).__name__, error.call, error.code, str(error)]
    except BaseException as error:  # noqa: BLE001 - the test looks at it
        return [type(error).__name__, str(error)]


def connected(sink: Sink | None = None) -> Cpg:
    cpg = Cpg(sink or Sink())
    cpg.connect()
    return cpg


def statuses(codes: list[int]) -> object:
    """Return the outcomes of each call for each status."""
    cpg = connected()
    results: dict[str, list[object]] = {}
    for name, call in CALLS.items():
        results[name] = []
        for code in codes:
            set_answer(name, code)
            results[name].append(outcome(lambda call=call: call(cpg)))  # type: ignore[misc]
    cpg.close()
    return results


def connecting(codes: list[int]) -> object:
    """Return the outcomes of a connect that fails, and the number of finalized handles."""
    found = []
    for code in codes:
        cpg = Cpg(Sink())
        set_answer("cpg_model_initialize", code)
        set_answer("cpg_finalize", 1)
        found.append((outcome(cpg.connect), outcome(cpg.fileno)))
        cpg.close()
        found.append(FAKE.fake_count(b"cpg_finalize"))
    return found


def lifetime() -> object:
    """Return the outcomes of calls after a close, and the finalize calls of each way to end."""
    set_answer("cpg_finalize", 6)  # the handle is gone whatever the status
    cpg = connected()
    again = outcome(cpg.connect)
    cpg.close()
    cpg.close()
    closed = [outcome(lambda call=call: call(cpg)) for call in CALLS.values()]  # type: ignore[misc]
    closed += [outcome(cpg.fileno), outcome(cpg.connect)]
    counts = [FAKE.fake_count(b"cpg_finalize")]
    dropped = connected()
    del dropped
    counts.append(FAKE.fake_count(b"cpg_finalize"))
    set_answer("cpg_fd_get", 9)
    half = outcome(connected)
    counts.append(FAKE.fake_count(b"cpg_finalize"))
    fresh = [outcome(lambda call=call: call(Cpg(Sink()))) for call in CALLS.values()]  # type: ignore[misc]
    return {"again": again, "closed": closed, "counts": counts, "half": half, "fresh": fresh}


def dispatching() -> object:
    """Return the outcomes of dispatches with a callback, without one, and without a descriptor."""
    sink = Sink()
    cpg = connected(sink)
    FAKE.fake_queue(1)
    found = [cpg.dispatch_one(), sink.seen]
    found.append(outcome(cpg.dispatch_one))  # CS_OK without a callback: a fragment of a message
    sink.failure = KeyboardInterrupt("of the sink")
    FAKE.fake_queue(1)
    set_answer("cpg_dispatch", 2)
    found.append(outcome(cpg.dispatch_one))  # the sink's exception outranks the status
    found.append(outcome(cpg.dispatch_one))
    set_answer("cpg_dispatch", 1)
    FAKE.fake_hang_up()
    found.append(outcome(cpg.dispatch_one))
    FAKE.fake_lose_descriptor()
    found.append(outcome(cpg.dispatch_one))
    cpg.close()
    return found


def unread(count: int) -> object:
    """Return the outcomes of *count* messages that nobody reads, and of one after a read."""
    cpg = connected()
    found = [outcome(lambda: cpg.mcast(b"data")) for _ in range(count)]
    FAKE.fake_read()
    return found, outcome(lambda: cpg.mcast(b"data"))


def names() -> object:
    """Return the outcomes of joins with names at the limit, too long, and with a NUL."""
    cpg = connected()
    return [outcome(lambda name=name: cpg.join(name)) for name in ("x" * 127, "x" * 128, "a\0b")]  # type: ignore[misc]


if __name__ == "__main__":
    what, *arguments = json.loads(sys.argv[1])
    run: Callable[..., object] = globals()[what]
    print(json.dumps(run(*arguments)))
