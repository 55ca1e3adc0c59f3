# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every record of every pack: read, opened (tag), decompressed, hashed again, compared with its name (I-3).

One thread plans reads of `_WINDOW` bytes; as many as there are processors read and check them (decryption, zstd and BLAKE3
run without the interpreter's lock). At most `_AHEAD` windows are in memory. Bases of deltas come through a cache.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from everywhen.formats.errors import FormatError
from everywhen.formats.ids import PackId, pack_object
from everywhen.formats.node import Names
from everywhen.formats.pack import FRAME_SIZE, PackIndex, Record
from everywhen.repository.available import available
from everywhen.repository.fetch import ChunkFetcher
from everywhen.repository.intake import WORKERS
from everywhen.repository.packs import OpenPack
from everywhen.repository.repository import Repository
from everywhen.repository.twins import twin_of
from everywhen.repository.verify.findings import BadRecord
from everywhen.repository.verify.survey import Survey
from everywhen.storage.base import ObjectNotFound

_WINDOW = 4 << 20
_AHEAD = 2 * WORKERS
_BASES = 64 << 20


@dataclass(slots=True)
class Reading:
    """What was read: `bad` records, bytes, copies of chunks."""

    bad: list[BadRecord]
    bytes_read: int = 0
    chunks: int = 0


@dataclass(frozen=True, slots=True)
class _Window:
    """Neighbouring records of one copy of a pack: names (n, 32), offsets and ends (n,) in bytes."""

    pack: PackId
    twin: bool
    opened: OpenPack
    names: Names
    offsets: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]


def read_everything(repository: Repository, survey: Survey, progress: Callable[[int, int], None]) -> Reading:
    """Check all packs of the survey, both copies. `progress` is told bytes done and bytes in all. Raises StorageError."""
    total = sum(seen.bytes_stored for seen in survey.packs.values())
    result = Reading([])
    checker = _Checker(repository, survey.fetcher)
    with ThreadPoolExecutor(WORKERS, thread_name_prefix="verify") as pool:
        pending: deque[tuple[_Window, Future[list[BadRecord] | None]]] = deque()

        def settle() -> None:
            window, future = pending.popleft()
            bad = future.result()
            if bad is None:
                return  # gc deleted the pack meanwhile
            result.bad += bad
            result.bytes_read += int(window.ends[-1] - window.offsets[0])
            result.chunks += len(window.offsets)
            progress(min(result.bytes_read, total), total)

        try:
            for window in _windows(repository, survey):
                pending.append((window, pool.submit(checker.check, window)))
                if len(pending) > _AHEAD:
                    settle()
            while pending:
                settle()
        finally:
            for _, future in pending:
                future.cancel()
    progress(total, total)
    return result


def _windows(repository: Repository, survey: Survey) -> Iterator[_Window]:
    for pack, index in survey.indexes():
        for twin in (False, True):
            if survey.packs[pack].sizes[twin] is None:
                continue
            try:
                opened = repository.packs.open(pack, twin=twin)
            except (ObjectNotFound, FormatError):
                continue  # gone, or reported as a whole
            yield from _windows_of(pack, index, opened, twin=twin)


def _windows_of(pack: PackId, index: PackIndex, opened: OpenPack, *, twin: bool) -> Iterator[_Window]:
    offsets = index.offsets.astype(np.int64)
    ends = offsets + index.lengths + FRAME_SIZE
    at = 0
    while at < len(index):
        stop = max(at + 1, int(np.searchsorted(ends, offsets[at] + _WINDOW, side="right")))
        yield _Window(pack, twin, opened, index.names[at:stop], offsets[at:stop], ends[at:stop])
        at = stop


class _Checker:
    """Checks windows; used from several threads."""

    def __init__(self, repository: Repository, fetcher: ChunkFetcher) -> None:
        self._repository = repository
        self._fetcher = fetcher
        self._bases: OrderedDict[bytes, bytes] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def check(self, window: _Window) -> list[BadRecord] | None:
        """The bad records of a window; None when its pack is gone."""
        name = pack_object(window.pack)
        start = int(window.offsets[0])
        try:
            raw = self._repository.store.get_range(twin_of(name) if window.twin else name, start, int(window.ends[-1]) - start)
        except ObjectNotFound:
            return None
        data = memoryview(raw)
        bad: list[BadRecord] = []
        deltas: list[tuple[int, Record]] = []
        for row, (offset, end) in enumerate(zip(window.offsets.tolist(), window.ends.tolist(), strict=True)):
            expected = window.names[row].tobytes()
            try:
                record = window.opened.open_record(data[offset - start : end - start])
                if record.name != expected:
                    bad.append(self._bad(window, row, "holds another chunk than the index says"))
                elif record.bases:
                    deltas.append((row, record))
                else:
                    self._judge(window, row, record, [], bad)
            except FormatError as error:
                bad.append(self._bad(window, row, str(error)))
        self._check_deltas(window, deltas, bad)
        return bad

    def _check_deltas(self, window: _Window, deltas: list[tuple[int, Record]], bad: list[BadRecord]) -> None:
        contents = self._contents({base for _, record in deltas for base in record.bases})
        for row, record in deltas:
            bases = [content for base in record.bases if (content := contents.get(base)) is not None]
            # Without its base a delta cannot be read, and is no worse itself: the base is what was found damaged.
            if len(bases) == len(record.bases):
                self._judge(window, row, record, bases, bad)

    def _judge(self, window: _Window, row: int, record: Record, bases: list[bytes], bad: list[BadRecord]) -> None:
        codec = self._repository.codec
        try:
            content = codec.decode(record, bases)
        except FormatError as error:
            bad.append(self._bad(window, row, str(error)))
            return
        if codec.name(content) != record.name:
            bad.append(self._bad(window, row, "its content is not what its name says"))

    def _contents(self, names: set[bytes]) -> dict[bytes, bytes]:
        """Contents of bases; those that cannot be read are left out."""
        with self._lock:
            found = {name: self._bases[name] for name in names if name in self._bases}
            for name in found:
                self._bases.move_to_end(name)
        missing = sorted(names - found.keys())
        if not missing:
            return found
        for name, content in available(self._fetcher, missing):
            found[name] = content
            with self._lock:
                if name not in self._bases:
                    self._bases[name] = content
                    self._size += len(content)
                while self._size > _BASES:
                    _, oldest = self._bases.popitem(last=False)
                    self._size -= len(oldest)
        return found

    @staticmethod
    def _bad(window: _Window, row: int, why: str) -> BadRecord:
        return BadRecord(window.pack, int(window.offsets[row]), window.names[row].tobytes(), why, window.twin)
