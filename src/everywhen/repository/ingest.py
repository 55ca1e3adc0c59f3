# SPDX-License-Identifier: AGPL-3.0-or-later
"""Taking in disks: blocks become chunks in packs, and block maps over them. The data's way in (docs/architecture.md).

One thread reads (`DiskIntake`), several workers name, look up, compress and seal (`ChunkSink`), others store full packs.
Bounded: at most `_AHEAD` batches of 4 MiB and `_PACKS_WAITING` finished packs are in memory at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from everywhen.block.device import BLOCK_SIZE
from everywhen.formats.ids import CHUNK_NAME_SIZE, ChunkName, PackId, PointId, Randomness
from everywhen.formats.node import Names
from everywhen.formats.pack import KIND_DATA, KIND_META, PackIndex
from everywhen.repository.chunk import ChunkCodec, Content, Encoded
from everywhen.repository.fetch import ChunkFetcher
from everywhen.repository.index.index import ChunkIndex
from everywhen.repository.keys.cipher import Ciphers
from everywhen.repository.packs import PackBuilder, store_pack
from everywhen.repository.similarity import PAGE, Likeness, Similarity, node_fingerprints, pages_in_place, sampled
from everywhen.storage.base import ObjectStore

_IN_PLACE, _MOVED = 1, 3
"""zstd's levels for deltas. Where most of a block is where it was, level 3 gains 1.5 % and takes twice as long (105 µs instead
of 50); where its pages have moved, 17 % (2,377 bytes instead of 2,850; 150 µs instead of 80)."""
_PACKS_WAITING = 2
_GOOD_DELTA = BLOCK_SIZE // 8 + 512
"""A delta up to this size is taken without asking what the full form would cost: two changed pages of sixteen, and what
zstd needs to say where the other fourteen are (70 bytes)."""

_ZERO = bytes(BLOCK_SIZE)
_NO_NAME = bytes(CHUNK_NAME_SIZE)


@dataclass(frozen=True, slots=True)
class Batch:
    """Blocks to take in: contents (the last one of a disk may be short), and the names they had before, (n, 32)."""

    contents: list[Content]
    before: Names


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a batch: names now, (n, 32); bytes of content that changed, and bytes newly stored for it."""

    names: Names
    bytes_changed: int
    bytes_stored: int


@dataclass(frozen=True, slots=True)
class Writing:
    """What a sink needs of its repository."""

    store: ObjectStore
    repository: bytes
    ciphers: Ciphers
    index: ChunkIndex
    fetcher: ChunkFetcher
    similarity: Similarity
    codec: ChunkCodec
    learn: Callable[[PackId, PackIndex], None]
    """Takes the index of a pack that is durable now into the caches."""
    randomness: Randomness


@dataclass(frozen=True, slots=True)
class _Unlike:
    """A new block that is no small delta against what was in its place.

    Where most of its pages still are what they are in one base: that base, the delta against it, and which pages those are.
    Making another delta, against the base that is found by these pages, took 130 µs and found the same one.
    """

    name: ChunkName
    content: Content
    settled: npt.NDArray[np.bool_]
    bases: list[tuple[bytes, bytes]]
    delta: Encoded | None


class ChunkSink:
    """Stores chunks for one session. `take` may be called from several threads; `put_nodes` and `finish` from one."""

    def __init__(self, writing: Writing, session: PointId | str) -> None:
        self._w = writing
        self._session = session
        self._threads = threading.local()
        self._builders: list[list[PackBuilder]] = []
        self._claimed: set[bytes] = set()
        """Names in packs that are not yet durable; the index does not know them."""
        self._lock = threading.Lock()
        self._storing = ThreadPoolExecutor(_PACKS_WAITING, thread_name_prefix="store")
        self._room = threading.BoundedSemaphore(_PACKS_WAITING)
        self._failure: BaseException | None = None
        """The first thing that kept a pack from being stored."""
        self.bytes_put = 0
        """Bytes of the packs that are durable, second copies included; all that were taken so far, after `flush`."""
        self._nodes = self._builder(KIND_META)

    def take(self, batch: Batch) -> Taken:
        """Name the blocks of a batch, store those that are new. Raises StorageError, Damaged."""
        codec, slot = self._w.codec, self._slot()
        contents = [content if len(content) == BLOCK_SIZE else _padded(content) for content in batch.contents]
        names = _rows([None if _is_zero(content) else codec.name(content) for content in contents])
        changed = (names != batch.before).any(axis=1)
        fresh = np.flatnonzero(changed & names.any(axis=1))
        known = self._w.index.decodable(names[fresh])
        new = [row for row in fresh[~known].tolist() if self._claim(ChunkName(names[row].tobytes()))]
        stored = 0
        unlike: list[_Unlike] = []
        for row, bases in zip(new, self._w.fetcher.full_forms(batch.before[new]), strict=True):
            name, content = ChunkName(names[row].tobytes()), contents[row]
            delta = codec.encode_delta(name, content, bases, _IN_PLACE) if bases else None
            if delta is not None and len(delta.payload) <= _GOOD_DELTA:
                stored += self._put(slot, delta, [])
            else:
                unlike.append(_unlike(name, content, bases, delta))
        found = self._w.similarity.search([block.content for block in unlike], [block.settled for block in unlike])
        for block, likeness in zip(unlike, found, strict=True):
            chunk = self._encode(codec, block, likeness)
            stored += self._put(slot, chunk, [] if chunk.bases else sampled(likeness.pages))
        lengths = np.array([len(content) for content in batch.contents])
        return Taken(names, int(lengths[changed].sum()), stored)

    def put_nodes(self, contents: list[bytes], before: list[ChunkName | None]) -> list[ChunkName]:
        """Store block map nodes unless they are known; as deltas against nodes they follow or are like, where it pays."""
        names = [self._w.codec.name(content) for content in contents]
        rows = np.frombuffer(b"".join(names), np.uint8).reshape(-1, CHUNK_NAME_SIZE)
        known = self._w.index.decodable(rows)
        new = [at for at in np.flatnonzero(~known).tolist() if self._claim(names[at])]
        bases = self._w.fetcher.full_forms(_rows([before[at] for at in new]))
        prints = [node_fingerprints(contents[at]) for at in new]
        lone = [row for row, likely in enumerate(bases) if not likely]
        for row, found in zip(lone, self._w.similarity.nodes([prints[row] for row in lone]), strict=True):
            bases[row] = found
        for at, likely, fingerprints in zip(new, bases, prints, strict=True):
            chunk = self._w.codec.encode_full(names[at], contents[at])
            if likely:
                delta = self._w.codec.encode_delta(names[at], contents[at], likely[:1], _IN_PLACE)
                # Nodes hardly compress (they are hashes); half is where a delta stops being worth its second read.
                if len(delta.payload) < len(chunk.payload) // 2:
                    chunk = delta
            self._put_twinned(chunk, [] if chunk.bases else fingerprints)
        return names

    def put_copy(self, chunk: Encoded, *, twinned: bool, fingerprints: list[int]) -> None:
        """Store a chunk that gc or repair brings from elsewhere, whether the index knows it or not. Once per name."""
        if not self._claim(chunk.name):
            return
        if twinned:
            self._put_twinned(chunk, fingerprints)
            return
        self._put(self._slot(), chunk, fingerprints)

    def flush(self) -> None:
        """Store what is there; on return it is durable and can be read. Nobody may `take` meanwhile. Raises StorageError."""
        for slot in self._builders:
            if len(slot[0]):
                self._hand_over(slot[0])
                slot[0] = self._builder(KIND_DATA)
        # Nodes last: they name the data (I-2); their pack is not begun before all of it was handed over.
        if len(self._nodes):
            self._hand_over(self._nodes)
            self._nodes = self._builder(KIND_META)
        for _ in range(_PACKS_WAITING):
            self._room.acquire()
        self._room.release(_PACKS_WAITING)
        self._demand_whole()

    def finish(self) -> None:
        """Store what is left, wait until all is durable, and end. Raises StorageError."""
        self.flush()
        self.close()

    def close(self) -> None:
        """Stop the storing threads; what they have begun is ended first."""
        self._storing.shutdown(wait=True)

    def _encode(self, codec: ChunkCodec, block: _Unlike, likeness: Likeness) -> Encoded:
        delta, similar = block.delta, self._w.similarity.bases(likeness)
        if delta is not None:
            others = [base for base in similar if base[0] not in delta.bases]
            similar = [*block.bases, others[0]] if others else []
        if similar:
            delta = codec.encode_delta(block.name, block.content, similar, _MOVED)
            if len(delta.payload) <= _GOOD_DELTA:
                return delta
        full = codec.encode_full(block.name, block.content)
        # A full chunk opens with one read and can be a base itself: a delta has to save at least 30 % to be preferred.
        return full if delta is None or len(delta.payload) > 0.7 * len(full.payload) else delta

    def _put_twinned(self, chunk: Encoded, fingerprints: list[int]) -> None:
        self._nodes.add(chunk, fingerprints)
        if self._nodes.full:
            self._hand_over(self._nodes)
            self._nodes = self._builder(KIND_META)

    def _put(self, slot: list[PackBuilder], chunk: Encoded, fingerprints: list[int]) -> int:
        size = slot[0].add(chunk, fingerprints)
        if slot[0].full:
            self._hand_over(slot[0])
            slot[0] = self._builder(KIND_DATA)
        return size

    def _slot(self) -> list[PackBuilder]:
        """This thread's open pack, alone in a list so that another can take its place."""
        if not hasattr(self._threads, "slot"):
            self._threads.slot = [self._builder(KIND_DATA)]
            with self._lock:
                self._builders.append(self._threads.slot)
        slot: list[PackBuilder] = self._threads.slot
        return slot

    def _builder(self, kind: int) -> PackBuilder:
        return PackBuilder(self._w.ciphers, self._w.repository, kind, self._session, self._w.randomness)

    def _claim(self, name: ChunkName) -> bool:
        with self._lock:
            if name in self._claimed:
                return False
            self._claimed.add(name)
            return True

    def _hand_over(self, builder: PackBuilder) -> None:
        """Let a storing thread put the pack; waits while too many are under way, raises what an earlier one raised."""
        self._room.acquire()
        try:
            self._demand_whole()
        except BaseException:
            self._room.release()
            raise
        # Not under the lock, which the storing thread takes: whether it runs beside us or instead of us must not matter.
        self._storing.submit(self._store, builder)

    def _demand_whole(self) -> None:
        """Raise what kept a pack from being stored. For good: what lacks a pack must never be committed (I-2)."""
        with self._lock:
            failure = self._failure
        if failure is not None:
            raise failure

    def _store(self, builder: PackBuilder) -> None:
        try:
            index = store_pack(self._w.store, builder)
            self._w.learn(builder.pack, index)
            with self._lock:
                self._claimed.difference_update(row.tobytes() for row in index.names)
                self.bytes_put += builder.stored_bytes
        except BaseException as error:
            with self._lock:
                self._failure = self._failure or error
            raise
        finally:
            self._room.release()


def _unlike(name: ChunkName, content: Content, bases: list[tuple[bytes, bytes]], delta: Encoded | None) -> _Unlike:
    """`bases` and `delta`: what was in the block's place, and the delta against it."""
    if len(bases) == 1 and len(bases[0][1]) == len(content):
        settled = pages_in_place(content, bases[0][1])
        if 2 * int(settled.sum()) >= len(settled):
            return _Unlike(name, content, settled, bases, delta)
    return _Unlike(name, content, np.zeros(BLOCK_SIZE // PAGE, bool), [], None)


def _padded(content: Content) -> bytes:
    return bytes(content).ljust(BLOCK_SIZE, b"\0")


def _is_zero(content: Content) -> bool:
    # The first byte spares nearly all blocks of data the copy: comparing a view compares byte by byte, in 130 µs.
    return not content[0] and bytes(content) == _ZERO


def _rows(names: Sequence[ChunkName | None]) -> Names:
    """(n, 32): the names, all-zero for None."""
    return np.frombuffer(b"".join(name or _NO_NAME for name in names), np.uint8).reshape(-1, CHUNK_NAME_SIZE)
