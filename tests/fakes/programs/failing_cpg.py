"""What ``Cpg`` makes of each status of libcpg; runs with libcpg.c preloaded, prints JSON."""

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
    """Keeps what is delivered, and fails if it is told to."""

    def __init__(self) -> None:
        self.seen: list[object] = []
        self.failure: BaseException | None = None

    def on_deliver(self, member: object, data: bytes) -> None:
        self.seen.append((member, data.decode()))
        if self.failure:
            raise self.failure

    def on_confchg(self, *_lists: object) -> None:
        raise AssertionError("nobody joined")


def set_answer(call: str, status: int) -> None:
    FAKE.fake_answer(call.encode(), status)


def outcome(call: Callable[[], object]) -> object:
    """Return the result, or what was raised."""
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
    """Return, for each call, the outcome with each code."""
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
    """Return the outcomes of a connect that fails, and how often a handle was given up."""
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
    """Return what a closed connection answers, and the finalizes of several ways to end."""
    set_answer("cpg_finalize", 6)  # it is gone whatever that says
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
    """Return what dispatches answer that call back, or do not, or whose descriptor is gone."""
    sink = Sink()
    cpg = connected(sink)
    FAKE.fake_queue(1)
    found = [cpg.dispatch_one(), sink.seen]
    found.append(outcome(cpg.dispatch_one))  # CS_OK without a call: a fragment
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


def names() -> object:
    """Return the outcome of joining groups with names at the limit, and of bad arguments."""
    cpg = connected()
    return [outcome(lambda name=name: cpg.join(name)) for name in ("x" * 127, "x" * 128, "a\0b")]  # type: ignore[misc]


if __name__ == "__main__":
    what, *arguments = json.loads(sys.argv[1])
    run: Callable[..., object] = globals()[what]
    print(json.dumps(run(*arguments)))
