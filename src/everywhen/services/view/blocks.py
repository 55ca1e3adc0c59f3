# SPDX-License-Identifier: AGPL-3.0-or-later
"""Contents of blocks for all who read at once: kept in bounded memory, by chunk name, and each fetched by one thread only.

By name, not by place: the moments of a VM, and VMs of the same kind, share most of their blocks.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from everywhen.formats.ids import CHUNK_NAME_SIZE
from everywhen.repository.errors import RepositoryError
from everywhen.repository.fetch import ChunkFetcher
from everywhen.storage.allocator import use_few_arenas
from everywhen.storage.base import StorageError

CACHE_BYTES = 256 << 20
"""Of contents kept; a process has about 100 MB beside them."""

_AHEAD_THREADS, _FAR_AHEAD_THREADS = 2, 8
_AHEAD_TOGETHER = 16
"""Blocks fetched ahead by one thread at a time, 1 MiB: less, and the search in the index counts; more, and others wait."""
_AHEAD_WAITING = 32
"""Portions of blocks that may wait to be fetched ahead; more are not asked for: nobody may be waiting for them any more."""


class Blocks:
    """The blocks of one repository. Safe to use from several threads."""

    def __init__(self, fetcher: ChunkFetcher, *, limit: int = CACHE_BYTES) -> None:
        """`limit`: bytes of content that are kept."""
        use_few_arenas()
        self._fetcher = fetcher
        self._limit = limit
        self._size = 0
        self._contents: OrderedDict[bytes, bytes] = OrderedDict()
        self._under_way: dict[bytes, threading.Event] = {}
        """What some thread is fetching: others wait for it to be done, and look again."""
        self._lock = threading.Lock()
        threads = _FAR_AHEAD_THREADS if fetcher.far else _AHEAD_THREADS
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead")
        self._waiting = 0

    def close(self) -> None:
        """Fetch no more ahead, and let go of all contents."""
        self._pool.shutdown(cancel_futures=True)
        with self._lock:
            for done in self._under_way.values():  # of what nobody will fetch any more
                done.set()
            self._under_way.clear()
            self._contents.clear()
            self._size = 0

    def at_hand(self, name: bytes) -> bytes | None:
        """The content of a chunk, if it need not be fetched."""
        with self._lock:
            content = self._contents.get(name)
            if content is not None:
                self._contents.move_to_end(name)
            return content

    def get(self, names: Iterable[bytes]) -> dict[bytes, bytes]:
        """The contents of chunks by name. Raises Damaged, StorageError."""
        found: dict[bytes, bytes] = {}
        wanted = list(dict.fromkeys(names))
        while wanted:
            mine, theirs = self._divide(wanted, found)
            if mine:
                found |= self._fetch(mine)
            for done in theirs:
                done.wait()
            # What somebody else fetched is in the cache now, or failed with a whole portion: then it is ours to try.
            wanted = [name for name in wanted if name not in found]
        return found

    def ahead(self, names: list[bytes]) -> None:
        """Have chunks fetched that will be asked for soon, if there is time."""
        names = list(dict.fromkeys(names))  # blocks of the same content have one name
        for at in range(0, len(names), _AHEAD_TOGETHER):
            with self._lock:
                portion = [
                    name
                    for name in names[at : at + _AHEAD_TOGETHER]
                    if name not in self._contents and name not in self._under_way
                ]
                if not portion or self._waiting >= _AHEAD_WAITING:
                    continue
                self._waiting += 1
                # Marked here, not by the thread: who asks meanwhile waits for it instead of fetching it a second time.
                self._under_way.update(dict.fromkeys(portion, threading.Event()))
            self._pool.submit(self._fetch_ahead, portion)

    def _divide(self, wanted: list[bytes], found: dict[bytes, bytes]) -> tuple[list[bytes], set[threading.Event]]:
        """Puts what is at hand into `found`; gives what this thread has to fetch, and the fetches of others to wait for."""
        mine: list[bytes] = []
        theirs: set[threading.Event] = set()
        with self._lock:
            for name in wanted:
                content = self._contents.get(name)
                if content is not None:
                    self._contents.move_to_end(name)
                    found[name] = content
                elif name in self._under_way:
                    theirs.add(self._under_way[name])
                else:
                    mine.append(name)
            self._under_way.update(dict.fromkeys(mine, threading.Event()))
        return mine, theirs

    def _fetch(self, names: list[bytes]) -> dict[bytes, bytes]:
        """Raises Damaged, StorageError."""
        try:
            rows = np.frombuffer(b"".join(names), np.uint8).reshape(len(names), CHUNK_NAME_SIZE)
            contents = dict(zip(names, self._fetcher.read_many(rows), strict=True))
        except BaseException:
            self._settle(names, {})
            raise
        self._settle(names, contents)
        return contents

    def _fetch_ahead(self, names: list[bytes]) -> None:
        try:
            self._fetch(names)
        except (RepositoryError, StorageError):
            pass  # whoever really asks for the block that cannot be had is told
        finally:
            with self._lock:
                self._waiting -= 1

    def _settle(self, names: list[bytes], contents: dict[bytes, bytes]) -> None:
        with self._lock:
            for name, content in contents.items():
                if name not in self._contents:
                    self._contents[name] = content
                    self._size += len(content)
            while self._size > self._limit:
                _, oldest = self._contents.popitem(last=False)
                self._size -= len(oldest)
            for done in {self._under_way.pop(name) for name in names}:
                done.set()
