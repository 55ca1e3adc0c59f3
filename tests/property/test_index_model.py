# SPDX-License-Identifier: AGPL-3.0-or-later
"""The chunk index against a model (dictionaries), with several processes' views of one folder taking turns."""

from __future__ import annotations

import os
import shutil
import tempfile

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from everywhen.formats.ids import PackId
from everywhen.formats.node import Names
from everywhen.formats.pack import DELTA_ONE, FULL_ZSTD, PackIndex
from everywhen.repository.index import run_cache
from everywhen.repository.index.index import ChunkIndex
from everywhen.repository.index.run_cache import discard
from tests.long_forms import SOAK

WRITERS = 2
NAMES = 24
"""Few names, four of each key, so that copies and equal keys are common."""

Contents = dict[bytes, list[tuple[int, bool]]]
"""By pack: (number of a name, whether it is a delta)."""


def name(number: int) -> bytes:
    return (number // 4 * 0x2AAAAAAAAAAAAAAA).to_bytes(8, "big") + number.to_bytes(24, "big")


def names(numbers: list[int]) -> Names:
    return np.frombuffer(b"".join(name(number) for number in numbers), dtype=np.uint8).reshape(-1, 32)


def index_of(chunks: list[tuple[int, bool]]) -> PackIndex:
    forms = np.array([DELTA_ONE if delta else FULL_ZSTD for _, delta in chunks], dtype=np.uint8)
    deltas = sum(delta for _, delta in chunks)
    sizes = np.full(len(chunks), 50, dtype=np.uint32)
    return PackIndex(names([number for number, _ in chunks]), sizes, sizes, forms, names([0] * deltas))


class IndexModel(RuleBasedStateMachine):
    """Each writer sees its own packs at once, others' after they flushed and it looked again."""

    def __init__(self) -> None:
        super().__init__()
        # So small that a few packs fill memory, and a few files are merged.
        self._sizes = (run_cache._MEMORY_ROWS, run_cache._FRESH_ROWS, run_cache._SMALL, run_cache._MAX_FILES)
        run_cache._MEMORY_ROWS, run_cache._FRESH_ROWS, run_cache._SMALL, run_cache._MAX_FILES = 25, 4, 2, 2
        self.directory = tempfile.mkdtemp()
        self.writers = [self.opened() for _ in range(WRITERS)]
        self.everything: Contents = {}
        self.seen: list[set[bytes]] = [set() for _ in range(WRITERS)]
        self.gone: set[bytes] = set()
        self.condemned: list[set[bytes]] = [set() for _ in range(WRITERS)]

    def teardown(self) -> None:
        run_cache._MEMORY_ROWS, run_cache._FRESH_ROWS, run_cache._SMALL, run_cache._MAX_FILES = self._sizes
        shutil.rmtree(self.directory)

    def opened(self) -> ChunkIndex:
        return ChunkIndex(os.path.join(self.directory, "index"), os.urandom)

    @rule(
        who=st.integers(0, WRITERS - 1),
        chunks=st.lists(st.tuples(st.integers(0, NAMES - 1), st.booleans()), max_size=12),
    )
    def add(self, who: int, chunks: list[tuple[int, bool]]) -> None:
        pack = PackId(len(self.everything).to_bytes(16, "big"))
        self.everything[pack] = chunks
        self.writers[who].add_pack(pack, index_of(chunks))
        self.seen[who].add(pack)

    @rule(who=st.integers(0, WRITERS - 1), which=st.integers(0, 1000))
    def add_what_another_has(self, who: int, which: int) -> None:
        there = sorted(self.everything.keys() - self.gone)
        if there:
            pack = there[which % len(there)]
            self.writers[who].add_pack(PackId(pack), index_of(self.everything[pack]))
            self.seen[who].add(pack)

    @rule(which=st.integers(0, 1000))
    def remove(self, which: int) -> None:
        there = sorted(self.everything.keys() - self.gone)
        if there:
            pack = there[which % len(there)]
            self.gone.add(pack)
            for writer, seen in zip(self.writers, self.seen, strict=True):
                writer.remove_packs([PackId(pack)])
                assert pack not in writer.known_packs()
                seen.discard(pack)

    @rule(who=st.integers(0, WRITERS - 1), which=st.integers(0, 30))
    def condemn(self, who: int, which: int) -> None:
        pack = PackId(which.to_bytes(16, "big"))
        self.writers[who].exclude([pack])
        self.condemned[who].add(pack)

    @rule(who=st.integers(0, WRITERS - 1))
    def flush(self, who: int) -> None:
        self.writers[who].flush()

    @rule()
    def all_flush_and_look_again(self) -> None:
        for index in self.writers:
            index.flush()
        for who, index in enumerate(self.writers):
            index.refresh()
            # Every pack is now known to everybody, unless the cache was thrown away under somebody.
            assert self.seen[who] <= index.known_packs()

    @rule(who=st.integers(0, WRITERS - 1))
    def restart(self, who: int) -> None:
        self.writers[who].close()
        self.writers[who] = self.opened()
        self.seen[who] = set()
        self.condemned[who] = set()
        # What others removed and have not flushed is still listed: the listing of the repository decides.
        self.writers[who].remove_packs([PackId(pack) for pack in self.gone])

    @rule(who=st.integers(0, WRITERS - 1))
    def crash(self, who: int) -> None:
        self.writers[who] = self.opened()
        self.seen[who] = set()
        self.condemned[who] = set()
        self.writers[who].remove_packs([PackId(pack) for pack in self.gone])

    @rule()
    def throw_away(self) -> None:
        discard(os.path.join(self.directory, "index"))

    @invariant()
    def every_answer_is_right(self) -> None:
        for who, index in enumerate(self.writers):
            # A removal that its writer has not flushed is unknown to others: they may know the pack a while longer.
            known = {bytes(pack) for pack in index.known_packs()}
            assert self.seen[who] <= known <= self.everything.keys()
            usable: dict[int, set[tuple[bytes, bool]]] = {}
            readable: dict[int, set[tuple[bytes, bool]]] = {}
            for pack in known:
                for number, delta in self.everything[pack]:
                    readable.setdefault(number, set()).add((pack, delta))
                    if pack not in self.condemned[who]:
                        usable.setdefault(number, set()).add((pack, delta))
            self.check(index, usable, readable)

    def check(
        self,
        index: ChunkIndex,
        usable: dict[int, set[tuple[bytes, bool]]],
        readable: dict[int, set[tuple[bytes, bool]]],
    ) -> None:
        located = index.lookup(names(list(range(NAMES))))
        only_full = index.lookup(names(list(range(NAMES))), full_only=True)
        for number in range(NAMES):
            copies = usable.get(number, set())
            full = {copy for copy in copies if not copy[1]}
            assert located.found[number] == bool(copies)
            assert only_full.found[number] == bool(full)
            one = index.lookup_one(name(number))
            assert (one is None) == (not copies)
            if one is not None:
                best = (index.pack_id(int(located.pack[number])), bool(located.is_delta[number]))
                assert best in (full or copies)
                assert (one.pack, one.is_delta) in (full or copies)
            assert {(copy.pack, copy.is_delta) for copy in index.all_copies(name(number))} == readable.get(number, set())


TestIndexModel = IndexModel.TestCase
TestIndexModel.settings = settings(max_examples=400 if SOAK else 50, stateful_step_count=60 if SOAK else 25)
