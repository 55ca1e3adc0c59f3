# SPDX-License-Identifier: AGPL-3.0-or-later
"""Wrong logins by address: whoever tries many has to wait, longer each time, before another one is looked at.

Nobody is made to wait inside a request: a thread that sleeps for an attacker is one that answers nobody else.
"""

from __future__ import annotations

import ipaddress
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

FREE = 5
"""So many wrong ones have no consequences: programs try a saved password that is outdated several times."""
_LONGEST_S = 300.0
_FORGOTTEN_S = 3600.0
_MOST = 10_000
"""Addresses; of more than that the ones that failed longest ago are forgotten."""


@dataclass(slots=True)
class _Failures:
    count: int
    last: float

    @property
    def until(self) -> float:
        """When (of the monotonic clock) the next one is looked at."""
        beyond = self.count - FREE
        return self.last + min(2.0**beyond, _LONGEST_S) if beyond >= 0 else self.last


class Attempts:
    """Safe to use from several threads."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._failures: OrderedDict[str, _Failures] = OrderedDict()
        self._lock = threading.Lock()

    def wait_s(self, address: str) -> float:
        """So many seconds nothing from there is looked at; 0: now."""
        with self._lock:
            found = self._failures.get(_network(address))
            return 0.0 if found is None else max(0.0, found.until - self._monotonic())

    def failed(self, address: str) -> float:
        """One more wrong one; how long the next has to wait, in seconds."""
        now, key = self._monotonic(), _network(address)
        with self._lock:
            found = self._failures.get(key)
            if found is None or now - found.last > _FORGOTTEN_S:
                found = self._failures[key] = _Failures(0, now)
            found.count, found.last = min(found.count + 1, 1000), now
            self._failures.move_to_end(key)
            if len(self._failures) > _MOST:
                self._failures.popitem(last=False)
            return max(0.0, found.until - now)

    def succeeded(self, address: str) -> None:
        """A right one: what was wrong before is forgotten."""
        with self._lock:
            self._failures.pop(_network(address), None)


def _network(address: str) -> str:
    """One address, or with IPv6 the network of 64 bits that one customer has."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address  # a unix socket has none
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed, 64), strict=False))
