# SPDX-License-Identifier: AGPL-3.0-or-later
"""A disk that somebody else reads for us, over NBD: all that the process which parses guests' file systems has of it."""

from __future__ import annotations

import socket

from everywhen.block.device import DeviceError
from everywhen.nbd.connection import NbdConnection, NbdError

_LARGEST = 8 << 20
_TIMEOUT_S = 3600.0
"""Who asks us has a time limit of its own, and knows what the repository takes."""


class ServedDisk:
    """A Readable (tree.py). For one thread at a time."""

    def __init__(self, connection: socket.socket, name: str) -> None:
        """`name`: of the disk, which is the export's. Raises NbdError."""
        self._name = name
        self._connection = NbdConnection(connection, name, timeout=_TIMEOUT_S)

    @property
    def size(self) -> int:
        return self._connection.offer.size

    def read(self, offset: int, length: int) -> bytes:
        """Raises ValueError outside the disk, DeviceError."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"{offset} + {length} is outside of {self.size} bytes")
        try:
            parts = []
            for at in range(offset, offset + length, _LARGEST):
                cookie = self._connection.ask(at, min(_LARGEST, offset + length - at))
                parts.append(self._connection.answer(cookie).data)
        except NbdError as error:
            raise DeviceError(f"{self._name}: bytes {offset} to {offset + length} cannot be read") from error
        return parts[0] if len(parts) == 1 else b"".join(parts)
