# SPDX-License-Identifier: AGPL-3.0-or-later
"""The content of an image as one value, so that a restore is proved without keeping the original.

BLAKE3 over the size and every block of 64 KiB that is not all zeroes, with its number: holes and written zeroes are the
same content, and a disk of 1 TB with 4 GB in it is read in seconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

BLOCK = 65536
_ZERO = bytes(BLOCK)


class WrongResult(Exception):
    """A restored image is not the one that was backed up."""


def content_of(path: Path) -> str:
    """The value, in hex."""
    hasher = blake3()
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        hasher.update(size.to_bytes(8, "big"))
        for start, end in data_extents(file.fileno(), size):
            for at in range(start, end, BLOCK):
                block = _exactly(file.fileno(), at, min(BLOCK, size - at))
                if block != _ZERO[: len(block)]:
                    hasher.update(at.to_bytes(8, "big"))
                    hasher.update(block)
    return hasher.hexdigest()


def prove(restored: Path, expected: str, what: str) -> None:
    """Raises WrongResult unless every byte of `restored` is right."""
    if not restored.is_file():
        raise WrongResult(f"{what}: nothing was restored at {restored.name}")
    found = content_of(restored)
    if found != expected:
        raise WrongResult(f"{what}: the restored image differs from what was backed up ({found[:16]}, not {expected[:16]})")


def data_extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, end) of what the file system holds of a file, widened to whole blocks, ascending, apart."""
    at = 0
    while at < size:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:
            return
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        first = max(at, start // BLOCK * BLOCK)
        at = min(size, -(-end // BLOCK) * BLOCK)
        yield first, at


def _exactly(descriptor: int, at: int, length: int) -> bytes:
    parts = []
    while length:
        part = os.pread(descriptor, length, at)
        if not part:
            raise WrongResult(f"an image became shorter while it was read (at byte {at})")
        parts.append(part)
        at, length = at + len(part), length - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
