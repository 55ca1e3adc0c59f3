# SPDX-License-Identifier: AGPL-3.0-or-later
"""A folder of sorted runs about packs, shared by processes: what the chunk index and the fingerprint table have in common.

Entries come by the pack (`add`), stay in memory in at most two runs, and become run files when they are many or at
`flush`. Run files are immutable and merged so that each is at least four times as large as all smaller ones together.
Everything between processes happens under one lock file, briefly: read the manifest, put a finished run file in its
place, replace the manifest, sweep. Long merges run without the lock and are dropped when somebody else was faster. A
process killed anywhere leaves at most files that no manifest names; whoever writes next deletes them. Nothing is fsynced:
after a power cut checksums tell, and the cache is built anew (I-7).

Lookups take no lock: they work on `view()`, an immutable tuple that is replaced whole.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from everywhen.repository.cache_place import in_caches
from everywhen.repository.errors import CacheFull
from everywhen.repository.index.cache_manifest import Manifest
from everywhen.repository.index.pack_table import PackTable
from everywhen.repository.index.process_lock import exclusive, try_lock
from everywhen.repository.index.run_merge import Keep, merge, sorted_piece
from everywhen.repository.index.runs import CacheDamaged, Keys, Records, Run, RunWriter

_FRESH_ROWS = 1 << 14
"""New entries are merged at each `add` into a run of up to so many (0.3 ms), and that one into the larger one."""
_MEMORY_ROWS = 1 << 19
"""Entries in memory that become a run file: 32 MiB of 64-byte entries."""
_RATIO = 4
_SMALL = 1 << 14
"""Files are merged like ones of at least so many rows: rewriting 4 MB is cheaper than one more run in each lookup."""
_LOCK, _UNFINISHED = "lock", ".unfinished"
_MAX_FILES = 16
"""Files that may pile up while much is added, before they are merged: 16 x 32 MiB in one pass instead of many."""

Randomness = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class PlacedRun:
    """A run, and the process's numbers of the packs that its records mean (None: they are the process's own)."""

    run: Run
    numbers: NDArray[np.uint32] | None

    def packs(self, records: Records) -> NDArray[np.uint32]:
        """The process's pack numbers of `records`. Raises CacheDamaged."""
        packs: NDArray[np.uint32] = records["pack"]
        if self.numbers is None:
            return packs
        if len(packs) and int(packs.max()) >= len(self.numbers):
            raise CacheDamaged("a run names a pack that the manifest does not have")
        return self.numbers.take(packs)

    def number(self, pack: int) -> int:
        """`packs` of one. Raises CacheDamaged."""
        if self.numbers is None:
            return pack
        if pack >= len(self.numbers):
            raise CacheDamaged("a run names a pack that the manifest does not have")
        return int(self.numbers[pack])


@dataclass(frozen=True, slots=True)
class RunKind:
    """What the records of a cache are: `tag` (8 bytes) in the manifest, `dtype` with a field `pack` (uint32), and
    `prune`, which may drop rows of a sorted piece whenever runs are merged."""

    tag: bytes
    dtype: np.dtype[np.void]
    prune: Keep


class RunCache:
    """See the module. `view` and `packs` may be read by any thread; the other methods exclude one another."""

    def __init__(self, directory: str, kind: RunKind, randomness: Randomness) -> None:
        """Open the cache in `directory`, or begin one. Raises CacheDamaged (then `discard` it), CacheFull, CacheRefused."""
        self._directory, self._kind, self._randomness = directory, kind, randomness
        self._mutex = threading.RLock()
        self.packs = PackTable()
        self._cache_id = b""
        self._numbers = np.empty(0, dtype=np.uint32)
        """The process's number of each pack of the manifest."""
        self._files: dict[bytes, Run] = {}
        self._orphans: tuple[PlacedRun, ...] = ()
        """Files of a cache that was thrown away under us: still mapped, still right."""
        self._memory: list[Run] = []
        self._pending: dict[int, None] = {}
        """Numbers of packs that are in `_memory` only."""
        self._removed = False
        self._view: tuple[PlacedRun, ...] = ()
        self.refresh()

    def view(self) -> tuple[PlacedRun, ...]:
        """All runs, large ones first."""
        return self._view

    def refresh(self) -> None:
        """See what other processes have flushed since. Raises CacheDamaged."""
        with self._mutex, self._locked():
            manifest = Manifest.read(self._directory, self._kind.tag)
            if manifest is not None:
                self._adopt(manifest)

    def add(self, pack: bytes, size: int, keys: Keys, records: Records) -> None:
        """Entries of a new pack of `size` stored bytes, in any order; a pack that is known is left alone."""
        with self._mutex:
            if self.packs.number(pack) is not None:
                return
            number = self.packs.add(pack, len(keys), size)
            records["pack"] = number
            order = np.argsort(keys, kind="stable")
            self._pending[number] = None
            self._memory.append(Run.in_memory(keys.take(order), records.take(order)))
            while len(self._memory) > 1 and (len(self._memory) > 2 or self._memory[-1].count > _FRESH_ROWS):
                # [large, fresh, new]: the new one joins the fresh one, and that one the large one when it has grown.
                older, newer = self._memory[-2:]
                self._memory[-2:] = [_joined([older, newer])]
            self._publish()
            if sum(run.count for run in self._memory) >= _MEMORY_ROWS:
                self._flush(max_files=_MAX_FILES)

    def remove(self, packs: Iterable[bytes]) -> None:
        """Packs that are gone: nothing of them is found any more; their entries vanish when runs are merged."""
        with self._mutex:
            for pack in packs:
                number = self.packs.number(pack)
                if number is not None:
                    self.packs.remove(number)
                    self._pending.pop(number, None)
                    self._removed = True

    def flush(self) -> None:
        """Let other processes see what was added and removed; merge runs where that pays. Raises CacheDamaged, OSError.

        Where there is no room it all stays in memory, and the next process reads it from the repository again.
        """
        with self._mutex, contextlib.suppress(CacheFull):
            self._flush(max_files=0)

    def close(self) -> None:
        """Flush, and let go of the files."""
        with self._mutex:
            self.flush()
            self._files, self._memory, self._orphans, self._view = {}, [], (), ()

    def _flush(self, *, max_files: int) -> None:
        with self._locked():
            manifest = Manifest.read(self._directory, self._kind.tag) or Manifest(self._randomness(16))
            self._adopt(manifest)
            if self._pending or self._removed:
                self._save(manifest)
        if len(self._files) > max_files:
            self._compact()

    def _adopt(self, manifest: Manifest) -> None:
        """Take over what the manifest says. The caller holds the lock."""
        if manifest.cache_id != self._cache_id:
            self._orphans += tuple(PlacedRun(run, self._numbers) for run in self._files.values())
            self._cache_id, self._files = manifest.cache_id, {}
            self._numbers = np.empty(0, dtype=np.uint32)
        if len(manifest.packs) < len(self._numbers):
            raise CacheDamaged("the manifest has lost packs")
        new = self.packs.extend(manifest.packs[len(self._numbers) :])
        for number in self._pending.keys() & set(new.tolist()):
            del self._pending[number]  # another process was faster: its entries are in a file now
        self._numbers = np.concatenate((self._numbers, new))
        for number in self._numbers[(manifest.packs["removed"] != 0) & self.packs.present.take(self._numbers)].tolist():
            self.packs.remove(number)
        files = {name: self._files.get(name) or self._open(name) for name in manifest.runs}
        self._files = dict(sorted(files.items(), key=lambda item: -item[1].count))
        self._publish()

    def _save(self, manifest: Manifest) -> None:
        """Put memory and removals into the files. The caller holds the lock."""
        gone = ~self.packs.present.take(self._numbers)
        manifest.packs = manifest.packs.copy()
        manifest.packs["removed"][gone] = 1
        pending = list(self._pending)
        if pending:
            first = manifest.append_packs(self.packs.lines(pending))
            in_cache = np.full(len(self.packs), -1, dtype=np.int64)
            in_cache[pending] = np.arange(first, first + len(pending))
            memory = _joined(self._memory)
            numbers = in_cache.take(memory.records["pack"])
            mine = np.nonzero(numbers >= 0)[0]
            records = memory.records.take(mine)
            records["pack"] = numbers.take(mine)
            with self._new_file(len(mine), contextlib.nullcontext()) as (name, writer):
                writer.append(*self._kind.prune(memory.keys.take(mine), records))
                self._place(name, writer)
            manifest.runs.append(name)
        self._replace(manifest)
        self._memory, self._pending, self._removed = [], {}, False
        self._adopt(manifest)

    def _compact(self) -> None:
        chosen = self._worth_merging()
        if not chosen:
            return
        present = self.packs.present.take(self._numbers)

        def keep(keys: Keys, records: Records) -> tuple[Keys, Records]:
            if len(records) and int(records["pack"].max()) >= len(present):
                raise CacheDamaged("a run names a pack that the manifest does not have")
            rows = np.nonzero(present.take(records["pack"]))[0]
            if len(rows) < len(keys):
                keys, records = keys.take(rows), records.take(rows)
            return self._kind.prune(keys, records)

        runs = [self._files[name] for name in chosen]
        rows = sum(run.count for run in runs)
        with in_caches(self._directory), self._new_file(rows, self._locked()) as (merged, writer):
            merge(runs, writer, keep)
            with self._locked():
                manifest = Manifest.read(self._directory, self._kind.tag)
                if manifest is None or manifest.cache_id != self._cache_id or not {*chosen} <= {*manifest.runs}:
                    return  # somebody else has merged them, or thrown them away
                self._place(merged, writer)
                manifest.runs = [name for name in manifest.runs if name not in chosen] + [merged]
                self._replace(manifest)
                self._adopt(manifest)

    def _worth_merging(self) -> list[bytes]:
        """The smallest files, up to the largest that is less than `_RATIO` times all smaller ones; or all; or none."""
        names, sizes = list(self._files), [run.count for run in self._files.values()]
        live = int(self.packs.lines()["rows"][self.packs.present[: len(self.packs)]].sum(dtype=np.int64))
        if sum(sizes) > max(live + live // 2, _SMALL):
            return names  # more than a third are entries of removed packs
        smaller, cut = 0, len(names)
        for at in range(len(names) - 1, -1, -1):
            if at < len(names) - 1 and sizes[at] < _RATIO * max(smaller, _SMALL):
                cut = at
            smaller += sizes[at]
        return names[cut:]

    def _publish(self) -> None:
        files = tuple(PlacedRun(run, self._numbers) for run in self._files.values())
        self._view = (*files, *self._orphans, *(PlacedRun(run, None) for run in self._memory))

    def _open(self, name: bytes) -> Run:
        return Run.open(self._path(name), self._kind.dtype)

    def _path(self, name: bytes) -> str:
        return os.path.join(self._directory, "run-" + name.hex())

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with in_caches(self._directory):
            os.makedirs(self._directory, exist_ok=True)
            with exclusive(os.path.join(self._directory, _LOCK)):
                yield

    @contextlib.contextmanager
    def _new_file(self, capacity: int, lock: contextlib.AbstractContextManager[None]) -> Iterator[tuple[bytes, RunWriter]]:
        """A run file to write. It is locked while it is written, so that `_sweep` sees whether its writer lives.

        `lock`: what to hold between its creation and that.
        """
        name = self._randomness(16)
        temporary = self._path(name) + _UNFINISHED
        with lock:
            writer = RunWriter(temporary, self._kind.dtype, capacity)
            try_lock(writer.descriptor)
        try:
            yield name, writer
        finally:
            writer.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)

    def _place(self, name: bytes, writer: RunWriter) -> None:
        """Finish a file and give it its name. The caller holds the lock and writes the manifest next."""
        writer.finish()
        os.replace(self._path(name) + _UNFINISHED, self._path(name))

    def _replace(self, manifest: Manifest) -> None:
        manifest.write(self._directory, self._kind.tag)
        named = {"run-" + name.hex() for name in manifest.runs}
        _sweep(self._directory, lambda name: name not in named)


def discard(directory: str) -> None:
    """Throw a cache away; a process that uses it keeps what it has mapped. Nothing happens when there is none."""
    if os.path.isdir(directory):
        with in_caches(directory), exclusive(os.path.join(directory, _LOCK)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(directory, "manifest"))
            _sweep(directory, lambda _: True)


def _joined(runs: list[Run]) -> Run:
    return Run.in_memory(*sorted_piece([(run.keys, run.records) for run in runs]))


def _sweep(directory: str, stale: Callable[[str], bool]) -> None:
    """Delete run files that are `stale`, and unfinished ones whose writer is dead. The caller holds the lock."""
    for entry in os.scandir(directory):
        if entry.name.startswith("run-") and stale(entry.name):
            # On Windows a file that is mapped elsewhere cannot be deleted: it goes at the next sweep.
            with contextlib.suppress(FileNotFoundError, PermissionError):
                if not entry.name.endswith(_UNFINISHED) or _abandoned(entry.path):
                    os.unlink(entry.path)


def _abandoned(path: str) -> bool:
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        return try_lock(descriptor)
    finally:
        os.close(descriptor)
