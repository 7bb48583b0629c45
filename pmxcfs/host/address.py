"""Finding the address that the other nodes reach this one by.

A resolver can take half a minute to fail, so it has a thread of its own that nothing waits for,
neither at the start nor at the end.
"""

import ipaddress
import logging
import socket
import threading
from collections.abc import Callable
from typing import NamedTuple

RETRY_INTERVAL = 30.0  # seconds

_log = logging.getLogger("pmxcfs.main")


class Resolution(NamedTuple):
    """What the resolver said: an address, or the reason why there is none."""

    address: str | None
    reason: str


def resolve(nodename: str) -> Resolution:
    """Look up the first address of *nodename* that is not a loopback one; may block for long."""
    try:
        found = socket.getaddrinfo(nodename, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return Resolution(None, str(error))
    addresses = [str(info[4][0]).partition("%")[0] for info in found]
    for address in addresses:
        if not ipaddress.ip_address(address).is_loopback:
            return Resolution(address, "")
    return Resolution(None, f"it is only known as {', '.join(sorted(set(addresses)))}")


class AddressLookup:
    """Resolves the node's name until that succeeds, then calls *on_found* once, on its thread."""

    def __init__(self, nodename: str, on_found: Callable[[str], None]) -> None:
        self._nodename = nodename
        self._on_found = on_found
        self._is_stopping = threading.Event()
        # A daemon thread: getaddrinfo can't be interrupted, and the end must not wait for it.
        self._thread = threading.Thread(target=self._look_up, name="address", daemon=True)

    def start(self) -> None:
        """Start looking."""
        self._thread.start()

    def stop(self) -> None:
        """Stop looking; does not wait for a look-up that is under way."""
        self._is_stopping.set()

    def _look_up(self) -> None:
        has_warned = False
        while not self._is_stopping.is_set():
            address, reason = resolve(self._nodename)
            if self._is_stopping.is_set():
                return
            if address:
                self._on_found(address)
                return
            if not has_warned:
                _log.warning(
                    "can't resolve node name %s to an address that others can reach: %s. "
                    "Add it to /etc/hosts; trying again every %d s",
                    self._nodename,
                    reason,
                    RETRY_INTERVAL,
                )
                has_warned = True
            self._is_stopping.wait(RETRY_INTERVAL)
