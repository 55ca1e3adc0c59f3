# SPDX-License-Identifier: AGPL-3.0-or-later
"""CRC-32C (Castagnoli; RFC 3720, appendix B.4), which VHDX uses and the standard library lacks.

Byte by byte in Python it runs at some 8 MB/s, so longer inputs are cut into lanes that numpy steps through together;
their sums are joined with the linear operator "append a lane of zero bytes". Who has many inputs of a few blocks each takes
the lanes of all of them at once (`registers`) and joins them himself (`joined`).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

_POLYNOMIAL: Final = 0x82F63B78
_LANE: Final = 1024
_FEW: Final = 32  # lanes; below, numpy's cost per step is higher than what it saves


def _byte_table() -> list[int]:
    table = []
    for value in range(256):
        register = value
        for _ in range(8):
            register = register >> 1 ^ (_POLYNOMIAL if register & 1 else 0)
        table.append(register)
    return table


_TABLE: Final = _byte_table()
_VECTOR: Final[NDArray[np.uint32]] = np.array(_TABLE, dtype=np.uint32)


def _step(register: int, data: bytes) -> int:
    for byte in data:
        register = register >> 8 ^ _TABLE[(register ^ byte) & 0xFF]
    return register


def _step_lanes(registers: NDArray[np.uint32], lanes: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """All registers at once; `lanes` has a row of bytes for each."""
    for column in range(lanes.shape[1]):
        registers = registers >> np.uint32(8) ^ _VECTOR[(registers ^ lanes[:, column]) & np.uint32(0xFF)]
    return registers


@cache
def _after(lane: int) -> list[list[int]]:
    """What a register becomes when a lane of zeroes passes through it, for each value of each of its four bytes."""
    values = (np.arange(256, dtype=np.uint32)[None, :] << np.array([[0], [8], [16], [24]], dtype=np.uint32)).reshape(-1)
    rows: list[list[int]] = _step_lanes(values, np.zeros((1024, lane), dtype=np.uint8)).reshape(4, 256).tolist()
    return rows


def registers(data: bytes, lane: int) -> list[int]:
    """The register of each whole lane of so many bytes, each begun with zero."""
    whole = len(data) // lane
    lanes = np.frombuffer(data, dtype=np.uint8, count=whole * lane).reshape(whole, lane)
    found: list[int] = _step_lanes(np.zeros(whole, dtype=np.uint32), lanes).tolist()
    return found


def joined(register: int, lanes: Iterable[int], lane: int) -> int:
    """`register` gone on with lanes by their own registers."""
    low, second, third, high = _after(lane)
    for one in lanes:
        register = (
            one ^ low[register & 0xFF] ^ second[register >> 8 & 0xFF] ^ third[register >> 16 & 0xFF] ^ high[register >> 24]
        )
    return register


def crc32c(data: bytes, start: int = 0xFFFFFFFF) -> int:
    """The checksum of `data`, 0 for no bytes. `start` is the register's first value, where a format has its own."""
    if len(data) < _FEW * _LANE:
        return _step(start, data) ^ 0xFFFFFFFF
    register = joined(start, registers(data, _LANE), _LANE)
    return _step(register, data[len(data) // _LANE * _LANE :]) ^ 0xFFFFFFFF
