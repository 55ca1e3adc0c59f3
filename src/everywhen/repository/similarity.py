# SPDX-License-Identifier: AGPL-3.0-or-later
"""Finding stored blocks that share pages with a new one, to store it as a delta against one or two of them.

Separately installed systems have the same files at other offsets: 85 to 92 % of their 64 KiB blocks are new, but only
3 to 5 % of their 4 KiB pages (design 4.2). Each page of a full chunk gets a 64-bit fingerprint; the pages of a new block
are looked up, and the one or two chunks that cover most of them become its bases. A wrong fingerprint costs space, never
correctness: the delta is coded against the bases' real content.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from everywhen.formats.ids import ChunkName
from everywhen.repository.errors import Damaged
from everywhen.repository.fetch import ChunkFetcher
from everywhen.repository.fingerprints import FingerprintTable
from everywhen.repository.index import ChunkIndex

PAGE = 4096
_WEIGHTS = np.random.Generator(np.random.PCG64(0x45564552595748)).integers(0, 1 << 63, PAGE // 8, dtype=np.uint64) * np.uint64(
    2
) + np.uint64(1)
"""Fixed odd multipliers of a multilinear hash (Lemire and Kaser 2012, "Strongly universal string hashing is fast")."""

SAMPLED = np.uint64(4)
"""One page in so many is in the table."""

_TRIED = 4
_REMEMBERED = 6
"""Candidates kept per thread from block to block: comparing one with a block costs 20 µs."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    name: bytes
    content: bytes
    pages: npt.NDArray[np.uint64]


def page_fingerprints(content: bytes) -> npt.NDArray[np.uint64]:
    """(pages,) uint64: one fingerprint per 4 KiB page; 0 for a page of zeroes. About 11 µs for 64 KiB."""
    pages = np.frombuffer(content, np.uint64).reshape(-1, PAGE // 8)
    sums = pages @ _WEIGHTS
    # Low bits of the sum depend on few bits of the page: mix, so that sampling by low bits is fair (MurmurHash3 finalizer).
    sums = sums ^ (sums >> np.uint64(33))
    sums = sums * np.uint64(0xFF51AFD7ED558CCD)
    mixed: npt.NDArray[np.uint64] = sums ^ (sums >> np.uint64(33))
    return mixed


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

    def fingerprints(self, content: bytes) -> list[int]:
        """What of a full chunk goes into the table."""
        prints = page_fingerprints(content)
        return [int(value) for value in np.unique(prints[_sampled(prints)])]

    def bases(self, content: bytes) -> list[tuple[bytes, bytes]]:
        """One or two full chunks, (name, content), that share pages with `content`; none where none do."""
        prints = page_fingerprints(content)
        wanted = np.unique(prints[prints != 0])
        if not len(wanted):
            return []
        recent: OrderedDict[bytes, _Candidate] = self._recent()
        for name in self._candidates(wanted[_sampled(wanted)]):
            if name not in recent:
                self._load(name, recent)
        shared = [(candidate, np.isin(wanted, candidate.pages)) for candidate in recent.values()]
        if not shared:
            return []
        first, covered = max(shared, key=lambda pair: int(pair[1].sum()))
        if not covered.any():
            return []
        recent.move_to_end(first.name)
        second, more = max(shared, key=lambda pair: int((pair[1] & ~covered).sum()))
        if not (more & ~covered).any():
            return [(first.name, first.content)]
        recent.move_to_end(second.name)
        return [(first.name, first.content), (second.name, second.content)]

    def _candidates(self, sampled: npt.NDArray[np.uint64]) -> list[bytes]:
        """Names of the chunks that share most sampled pages, at most `_TRIED`."""
        if not len(sampled):
            return []
        keys, counts = np.unique(self._table.candidates(sampled).chunk, return_counts=True)
        keys = keys[np.argsort(-counts, kind="stable")][:_TRIED]
        if not len(keys):
            return []
        names = self._index.names_of_full(keys)
        return [name.tobytes() for name in names if name.any()]

    def _load(self, name: bytes, recent: OrderedDict[bytes, _Candidate]) -> None:
        try:
            content = self._fetcher.read(ChunkName(name))
        except Damaged:
            return  # a hint that cannot be read is no base
        recent[name] = _Candidate(name, content, page_fingerprints(content))
        while len(recent) > _REMEMBERED:
            recent.popitem(last=False)

    def _recent(self) -> OrderedDict[bytes, _Candidate]:
        if not hasattr(self._threads, "recent"):
            self._threads.recent = OrderedDict()
        recent: OrderedDict[bytes, _Candidate] = self._threads.recent
        return recent


def _sampled(prints: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    chosen: npt.NDArray[np.bool_] = (prints != 0) & (prints % SAMPLED == 0)
    return chosen
