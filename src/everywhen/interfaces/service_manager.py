# SPDX-License-Identifier: AGPL-3.0-or-later
"""Telling systemd how a service stands: datagrams to the socket that it names (sd_notify(3)).

A service manager that is away, or does not read, is no reason to stop what it manages: nothing is waited for, and what cannot
be sent is dropped.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress


class ServiceManager:
    """systemd, or nobody."""

    def __init__(self, address: str) -> None:
        """`address`: a socket's path, `@…` for one without a file; '' for nobody."""
        self._address = "\0" + address[1:] if address.startswith("@") else address

    @classmethod
    def of(cls, env: Mapping[str, str]) -> ServiceManager:
        """Whoever has started this process."""
        address = env.get("NOTIFY_SOCKET", "")
        return cls(address if address[:1] in ("/", "@") else "")  # others are of virtual machines' own managers

    @property
    def there(self) -> bool:
        """Whether there is one."""
        return bool(self._address)

    def tell(self, **assignments: str) -> None:
        """Send assignments as `READY="1"`; may be called from a signal."""
        if not self.there:
            return
        lines = "\n".join(f"{name}={' '.join(value.split())}" for name, value in assignments.items())
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
            sending.setblocking(False)
            with suppress(OSError):
                sending.sendto(lines.encode(errors="replace"), self._address)
