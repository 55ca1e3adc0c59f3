# SPDX-License-Identifier: AGPL-3.0-or-later
"""Contents that memory is not to hold, put aside in a file without a name below the caches, and gone with who holds them.

Each is sealed with a key that is in memory alone: caches have no contents (docs/threat-model.md). The place of a content is
its nonce, since nothing is ever written over.
"""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from collections.abc import Callable
from functools import partial

from everywhen.formats.errors import Corrupt
from everywhen.formats.ids import Randomness
from everywhen.repository.cache_place import in_caches
from everywhen.repository.errors import Damaged
from everywhen.repository.keys.cipher import AesGcm


class Aside:
    """One such file. Safe to use from several threads."""

    def __init__(self, folder: str | os.PathLike[str], randomness: Randomness) -> None:
        """Raises CacheFull, CacheRefused, OSError."""
        self._folder = folder
        with in_caches(folder):
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - as long as anybody holds a content
        weakref.finalize(self, self._file.close)
        self._cipher = AesGcm(randomness(32))
        self._lock = threading.Lock()
        """For the file's position."""
        self._end = 0

    def put(self, content: bytes) -> Callable[[], bytes]:
        """What gives the content again, and raises Damaged, OSError. Raises CacheFull, OSError."""
        with self._lock, in_caches(self._folder):
            at = self._end
            sealed = memoryview(self._cipher.seal(_nonce(at), content, b""))
            self._file.seek(at)
            while sealed:
                count = self._file.write(sealed)
                sealed, self._end = sealed[count:], self._end + count
            return partial(self._get, at, self._end - at)

    def _get(self, at: int, length: int) -> bytes:
        with self._lock:
            self._file.seek(at)
            sealed = self._file.read(length)
        try:
            return self._cipher.open(_nonce(at), sealed, b"")
        except Corrupt as error:
            raise Damaged(f"{os.fspath(self._folder)}: what was put aside there is not as it was written") from error


def _nonce(at: int) -> bytes:
    return at.to_bytes(12, "little")
