"""Resolution of this node's name to the address that the other nodes use.

A resolver can block for half a minute before it fails. So it runs in a separate thread, and neither
the start nor the end of the daemon waits for that thread.
"""

import ipaddress
import logging
import socket
from collections.abc import Callable
from typing import NamedTuple

from pmxcfs.host.outage import Outage
from pmxcfs.host.threads import BackgroundThread

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
    return Resolution(None, f"only loopback addresses: {', '.join(sorted(set(addresses)))}")


class AddressLookup(BackgroundThread):
    """Resolves the node's name until that succeeds, then calls *on_found* once, on its thread."""

    def __init__(self, nodename: str, on_found: Callable[[str], None]) -> None:
        super().__init__("address")
        self._nodename = nodename
        self._on_found = on_found

    def run(self) -> None:
        """Look up the address until there is one; getaddrinfo can't be interrupted."""
        outage: Outage[str] = Outage(_log, level=logging.WARNING, describe=self._describe)
        while not self.is_stopping:
            address, reason = resolve(self._nodename)
            if self.is_stopping:
                return
            if address:
                self._on_found(address)
                return
            outage.fails(reason)
            self.pause(RETRY_INTERVAL)

    def _describe(self, reason: str) -> str:
        return (
            f"can't resolve node name {self._nodename} to an address that other nodes can reach: "
            f"{reason}; add the name to /etc/hosts; trying again every {RETRY_INTERVAL:.0f} s"
        )
