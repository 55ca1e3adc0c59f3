# SPDX-License-Identifier: AGPL-3.0-or-later
"""Contents of those of many chunks that can be read; reading many at once fails as a whole when one of them is bad."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from everywhen.repository.errors import Damaged
from everywhen.repository.fetch import ChunkFetcher

_AT_ONCE = 64


def available(fetcher: ChunkFetcher, names: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """(name, content) of every chunk that has a readable copy, read in few large reads. Raises StorageError."""
    for at in range(0, len(names), _AT_ONCE):
        batch = names[at : at + _AT_ONCE]
        try:
            yield from zip(batch, _read(fetcher, batch), strict=True)
        except Damaged:
            for name in batch:
                try:
                    content = _read(fetcher, [name])[0]
                except Damaged:
                    continue
                yield name, content


def _read(fetcher: ChunkFetcher, names: list[bytes]) -> list[bytes]:
    return fetcher.read_many(np.frombuffer(b"".join(names), np.uint8).reshape(len(names), 32))
