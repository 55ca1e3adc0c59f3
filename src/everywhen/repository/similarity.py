# SPDX-License-Identifier: AGPL-3.0-or-later
"""Finding stored blocks that share pages with a new one, to store it as a delta against one or two of them.

Separately installed systems have the same files at other offsets: 85 to 92 % of their 64 KiB blocks are new, but only
3 to 5 % of their 4 KiB pages (design 4.2). Each page of a full chunk gets a 64-bit fingerprint; the pages of a new block
are looked up, and the one or two chunks that cover most of them become its bases. A wrong fingerprint costs space, never
correctness: the delta is coded against the bases' real content.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from everywhen.formats.ids import CHUNK_NAME_SIZE, ChunkName
from everywhen.formats.node import NODE_SIZE
from everywhen.repository.chunk import Content
from everywhen.repository.errors import Damaged
from everywhen.repository.fetch import ChunkFetcher
from everywhen.repository.index.fingerprints import FingerprintTable
from everywhen.repository.index.index import ChunkIndex

PAGE = 4096
_WEIGHTS = np.random.Generator(np.random.PCG64(0x45564552595748)).integers(0, 1 << 63, PAGE // 8, dtype=np.uint64) * np.uint64(
    2
) + np.uint64(1)
"""Fixed odd multipliers of a multilinear hash (Lemire and Kaser 2012, "Strongly universal string hashing is fast")."""

SAMPLED = 2
"""One page in so many is in the table (20 bytes each). Of a second, 3 % different NTFS installation with 96 MB of its own
(8 MB of it random) 7.4 MB were new with every page in the table, 8.0 with every second, 11.4 with every fourth, 25 with
every eighth."""

_OF_NODES = 0x4E4F4445_4E4F4445
"""Keeps the fingerprints of nodes apart from those of pages."""

_TRIED = 4
_REMEMBERED = 8
"""Candidates kept per thread from block to block."""


class _Candidate(NamedTuple):
    name: bytes
    content: bytes
    pages: frozenset[int]


def page_fingerprints(contents: list[Content]) -> npt.NDArray[np.uint64]:
    """(n, pages) uint64: one fingerprint per 4 KiB page of blocks; 0 for a page of zeroes. About 10 µs for 64 KiB."""
    pages = np.frombuffer(b"".join(contents), np.uint64).reshape(len(contents), -1, PAGE // 8)
    sums = pages @ _WEIGHTS
    # Low bits of the sum depend on few bits of the page: mix, so that sampling by low bits is fair (MurmurHash3 finalizer).
    sums = sums ^ (sums >> np.uint64(33))
    sums = sums * np.uint64(0xFF51AFD7ED558CCD)
    mixed: npt.NDArray[np.uint64] = sums ^ (sums >> np.uint64(33))
    return mixed


def node_fingerprints(content: bytes) -> list[int]:
    """Two fingerprints of a block map node: its smallest entries, which two nodes that differ in a few entries share.

    (Broder 1997, "On the resemblance and containment of documents": the smallest of many hashes is a fair sample.)
    """
    entries = np.frombuffer(content, np.uint64, NODE_SIZE // 8 - 1, 8)[:: CHUNK_NAME_SIZE // 8]
    return [value ^ _OF_NODES for value in sorted(set(entries.tolist()) - {0})[:2]]


def sampled(pages: list[int]) -> list[int]:
    """Of a block's fingerprints those that go into the table when it is stored full."""
    return [value for value in dict.fromkeys(pages) if value and not value % SAMPLED]


class Likeness(NamedTuple):
    """The fingerprints of a block's pages; those that a base is looked for; names of full chunks that share sampled ones."""

    pages: list[int]
    sought: list[int]
    candidates: list[bytes]


def pages_in_place(content: Content, base: Content) -> npt.NDArray[np.bool_]:
    """(pages,) bool: which pages of a block are what they were in `base`. About 10 µs."""
    same = np.frombuffer(content, np.uint64) == np.frombuffer(base, np.uint64)
    in_place: npt.NDArray[np.bool_] = same.reshape(-1, PAGE // 8).all(axis=1)
    return in_place


class _Recent:
    """The candidates of the blocks before, of one thread."""

    def __init__(self) -> None:
        self.chunks: OrderedDict[bytes, _Candidate] = OrderedDict()
        self.pages: frozenset[int] = frozenset()
        """Of all of them: most blocks share none, and one look tells."""

    def add(self, candidate: _Candidate) -> None:
        self.chunks[candidate.name] = candidate
        self.forget(list(self.chunks)[:-_REMEMBERED])

    def forget(self, names: list[bytes]) -> None:
        for name in names:
            del self.chunks[name]
        self.pages = frozenset().union(*(known.pages for known in self.chunks.values()))

    def best(self, wanted: frozenset[int]) -> list[_Candidate]:
        """The one or two that together have most of these pages, which some of them have."""
        first = max(self.chunks.values(), key=lambda candidate: len(wanted & candidate.pages))
        self.chunks.move_to_end(first.name)
        left = wanted - first.pages
        if not left:
            return [first]
        second = max(self.chunks.values(), key=lambda candidate: len(left & candidate.pages))
        self.chunks.move_to_end(second.name)
        return [first, second]


class Similarity:
    """Chooses delta bases by shared pages. Safe to use from several threads.

    Only pages whose fingerprint has its low bits zero are in the table (`SAMPLED`), so that it stays small; a chunk that
    shares a sampled page is taken as a candidate, and so are the bases of the block before: files are longer than blocks,
    so what continued there most likely continues here.
    """

    def __init__(self, table: FingerprintTable, index: ChunkIndex, fetcher: ChunkFetcher) -> None:
        self._table = table
        self._index = index
        self._fetcher = fetcher
        self._threads = threading.local()

    def search(self, contents: list[Content], settled: list[npt.NDArray[np.bool_]]) -> list[Likeness]:
        """What is like each of these blocks. Many at once: a search in the table costs 100 µs, for one block or for 64.

        `settled`: for each block which of its pages, (pages,) bool, have a base already.
        """
        if not contents:
            return []
        prints = page_fingerprints(contents)
        sought = np.where(np.stack(settled), np.uint64(0), prints)
        owners, places = np.nonzero((sought != 0) & (sought % np.uint64(SAMPLED) == 0))
        names = self._candidates(len(contents), owners, sought[owners, places])
        return [Likeness(*parts) for parts in zip(prints.tolist(), sought.tolist(), names, strict=True)]

    def nodes(self, prints: list[list[int]]) -> list[list[tuple[bytes, bytes]]]:
        """For each node, given by `node_fingerprints`, a full one that has most of its entries, (name, content), if any has.

        A VM that was cloned from another has a block map that differs in a few entries, and none of its own to follow.
        """
        owners = np.repeat(np.arange(len(prints)), [len(some) for some in prints])
        flat = np.array([value for some in prints for value in some], np.uint64)
        found: list[list[tuple[bytes, bytes]]] = []
        for names in self._candidates(len(prints), owners, flat) if len(flat) else [[] for _ in prints]:
            try:
                found.append([(name, self._fetcher.read(ChunkName(name))) for name in names[:1]])
            except Damaged:
                found.append([])  # a hint that cannot be read is no base
        return found

    def _candidates(self, count: int, owners: npt.NDArray[np.intp], prints: npt.NDArray[np.uint64]) -> list[list[bytes]]:
        """For each of `count` owners names of full chunks that share fingerprints (owners and prints: (n,)), best first."""
        found = self._table.candidates(prints)
        names: list[list[bytes]] = [[] for _ in range(count)]
        if len(found.chunk):
            shared = Counter(zip(owners[found.which].tolist(), found.chunk.tolist(), strict=True))
            keys = sorted({chunk for _, chunk in shared})
            full = dict(zip(keys, self._index.names_of_full(np.array(keys, np.uint64)), strict=True))
            # Best first: those that share most.
            for (owner, chunk), _ in sorted(shared.items(), key=lambda item: (-item[1], item[0])):
                if len(names[owner]) < _TRIED and full[chunk].any():
                    names[owner].append(full[chunk].tobytes())
        return names

    def bases(self, likeness: Likeness) -> list[tuple[bytes, bytes]]:
        """One or two full chunks, (name, content), that have pages that are sought; none where none do."""
        recent = self._recent()
        for name in likeness.candidates:
            if name not in recent.chunks:
                self._load(name, recent)
        while wanted := recent.pages.intersection(likeness.sought):
            chosen = recent.best(wanted)
            # What is remembered may be gone from the repository: a delta against it could never be read.
            gone = [known.name for known in chosen if self._index.lookup_one(known.name, full_only=True) is None]
            if not gone:
                return [(known.name, known.content) for known in chosen]
            recent.forget(gone)
        return []

    def _load(self, name: bytes, recent: _Recent) -> None:
        try:
            content = self._fetcher.read(ChunkName(name))
        except Damaged:
            return  # a hint that cannot be read is no base
        recent.add(_Candidate(name, content, frozenset(page_fingerprints([content])[0].tolist()) - {0}))

    def _recent(self) -> _Recent:
        if not hasattr(self._threads, "recent"):
            self._threads.recent = _Recent()
        recent: _Recent = self._threads.recent
        return recent
