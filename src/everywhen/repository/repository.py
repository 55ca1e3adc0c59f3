# SPDX-License-Identifier: AGPL-3.0-or-later
"""A repository, opened: its parts wired together, and its index brought up to date with the packs there are."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from everywhen.formats.errors import FormatError
from everywhen.formats.ids import PackId, Randomness, pack_of_object
from everywhen.formats.pack import CIPHER_AES_256_GCM, CIPHER_NONE, PackIndex
from everywhen.formats.point import Tree
from everywhen.repository.blockmap import BlockMap
from everywhen.repository.cache_place import in_caches
from everywhen.repository.chunk import ChunkCodec
from everywhen.repository.condemned import read_condemned
from everywhen.repository.damage import damaged_copies
from everywhen.repository.documents import Documents
from everywhen.repository.fetch import ChunkFetcher
from everywhen.repository.index.fingerprints import FingerprintTable
from everywhen.repository.index.index import ChunkIndex
from everywhen.repository.index.run_cache import discard
from everywhen.repository.index.runs import CacheDamaged
from everywhen.repository.ingest import Writing
from everywhen.repository.keys.cipher import Ciphers
from everywhen.repository.keys.keys import Unlocked
from everywhen.repository.packs import PackReader
from everywhen.repository.point_cache import PointCache
from everywhen.repository.points import RecoveryPoints
from everywhen.repository.presence import Attendance, Clock, Holder, Presence
from everywhen.repository.similarity import Similarity
from everywhen.repository.twins import TWINS
from everywhen.repository.used_ranges import UsedRanges
from everywhen.storage.base import ObjectNotFound, ObjectStore

DEFAULT_LEVEL = 1
_PARALLEL_READS = 8


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a repository takes from outside: time, randomness, who we are, where caches may lie."""

    clock: Clock
    randomness: Randomness
    holder: Holder
    cache: Path


class Repository:
    """An open repository. Use as a context manager, or `close` it."""

    def __init__(self, store: ObjectStore, unlocked: Unlocked, surroundings: Surroundings, level: int = DEFAULT_LEVEL) -> None:
        self.store = store
        self.unlocked = unlocked
        self.surroundings = surroundings
        self.id = unlocked.repository_id
        encrypted = unlocked.superblock.encrypted
        self.ciphers = Ciphers(unlocked.keyset, CIPHER_AES_256_GCM if encrypted else CIPHER_NONE)
        self.documents = Documents(store, self.id, self.ciphers, surroundings.randomness)
        self.cache = surroundings.cache / self.id.hex()
        with in_caches(self.cache):
            for folder in (surroundings.cache, self.cache):  # the mode is for the last part of a path only
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.points = RecoveryPoints(self.documents, PointCache(self.cache / "points.sqlite"), unlocked.keyset.naming_key)
        self.packs = PackReader(store, self.id, self.ciphers)
        self.index, self.fingerprints = self._open_caches()
        self.codec = ChunkCodec(unlocked.keyset.naming_key, level)
        self.fetcher = ChunkFetcher(self.index, self.packs, self.codec, self.refresh)
        self.used_ranges = UsedRanges(self.fetcher.read_many)
        self.similarity = Similarity(self.fingerprints, self.index, self.fetcher)
        self.condemned_points: frozenset[str] = frozenset()
        """Points that gc is about to delete, as of the last `refresh`: not to be opened or built upon any more."""
        self.unreadable_condemned: list[str] = []
        """Sentences, as of the last `refresh`: documents that condemn nobody knows what. Who writes must not go on."""
        self.unreadable_notes: list[str] = []
        """The same for what is noted as damaged: who writes might rely on it."""
        self.unreadable_packs: dict[PackId, str] = {}
        """Packs whose index could be read neither from the end nor by a scan, with the reason."""
        self._refreshing = threading.Lock()
        self._stored: set[PackId] = set()
        """Packs that this process has stored."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, CacheDamaged):
            # Whoever met the damage fails; the next opening builds the caches anew.
            self.points.close()
            self.discard_caches()
            return
        self.close()

    def close(self) -> None:
        """Write what the caches have learned, and close them."""
        self.index.close()
        self.fingerprints.close()
        self.points.close()

    def writing(self) -> Writing:
        """What a chunk sink needs."""
        return Writing(
            self.store,
            self.id,
            self.ciphers,
            self.index,
            self.fetcher,
            self.similarity,
            self.codec,
            self._learn_own,
            self.surroundings.randomness,
        )

    def block_map(self, tree: Tree) -> BlockMap:
        """The block map of a tree."""
        return BlockMap(self.fetcher.read_many, tree)

    def attend(self, name: str, what: str, points: list[str]) -> Attendance:
        """A session or lease of ours, not yet begun."""
        now = self.surroundings.clock()
        return Attendance(
            self.documents, Presence(name, self.surroundings.holder, what, points, now, now), self.surroundings.clock
        )

    def refresh(self) -> None:
        """Bring the index up to date: new packs in, deleted packs out, condemned packs and damaged copies left out."""
        with self._refreshing:
            # Condemned before listed: of two listings in the other order, gc could delete a pack after the first and its
            # condemnation before the second, and the pack would look as good as any.
            self.look_for_condemned()
            # Known before listed: a pack that another thread adds in between must not look deleted.
            known = self.index.known_packs()
            listed = self._list_packs()
            gone = known - listed.keys()
            self.index.remove_packs(gone)
            self.fingerprints.remove_packs(gone)
            new = [(pack, size) for pack, size in listed.items() if pack not in known and pack not in self.unreadable_packs]
            with ThreadPoolExecutor(_PARALLEL_READS) as pool:
                for (pack, _), index in zip(new, pool.map(lambda item: self._read_index(*item), new), strict=True):
                    if index is not None:
                        self.learn(pack, index)
            self.index.flush()
            self.fingerprints.flush()
            # A flush also takes over what other processes of this host have put into the caches. What we did not find
            # listed they may have listed long ago, before it was deleted: not ours to rely on.
            strays = self.index.known_packs() - known - listed.keys() - self._stored
            self.index.exclude(strays)
            self.fingerprints.exclude(strays)
            unreadable: list[str] = []
            for pack, offsets in damaged_copies(self.documents, unreadable).items():
                self.index.exclude_copies(pack, offsets)
            self.unreadable_notes = unreadable

    def look_for_condemned(self) -> None:
        """The part of `refresh` that a reader needs whose points' packs are known: what gc is about to delete."""
        condemned, self.unreadable_condemned = read_condemned(self.documents)
        self.condemned_points = frozenset(point for one in condemned for point in one.points)
        excluded = {pack for one in condemned for pack in one.packs}
        self.index.exclude(excluded)
        self.fingerprints.exclude(excluded)

    def _list_packs(self) -> dict[PackId, int]:
        """All packs with their sizes in bytes, also those of which only the twin is left."""
        listed: dict[PackId, int] = {}
        for prefix in ("", TWINS):
            for found in self.store.list(prefix + "packs/"):
                pack = pack_of_object(found.name.removeprefix(prefix))
                if pack is not None:
                    listed.setdefault(pack, found.size)
        return listed

    def _learn_own(self, pack: PackId, index: PackIndex) -> None:
        self._stored.add(pack)
        self.learn(pack, index)

    def learn(self, pack: PackId, index: PackIndex) -> None:
        """Take a pack's index into the caches."""
        self.index.add_pack(pack, index)
        self.fingerprints.add_pack(pack, index)

    def _read_index(self, pack: PackId, size: int) -> PackIndex | None:
        """A pack's index: from its end, from its twin's end, or from its records. None: unreadable or gone."""
        reason = "missing"
        readers: list[Callable[[], PackIndex]] = [
            lambda: self.packs.index(pack, size)[1],
            lambda: self.packs.index(pack, size, twin=True)[1],
            lambda: self.packs.rebuild_index(pack)[1],
        ]
        for read in readers:
            try:
                return read()
            except ObjectNotFound:
                continue
            except FormatError as error:
                reason = str(error)
        if reason != "missing":
            self.unreadable_packs[pack] = reason
        return None

    def discard_caches(self) -> None:
        """Throw the index and the fingerprints away, after damage; the next opening builds them anew."""
        discard(str(self.cache / "index"))
        discard(str(self.cache / "fingerprints"))

    def _open_caches(self) -> tuple[ChunkIndex, FingerprintTable]:
        index, prints = str(self.cache / "index"), str(self.cache / "fingerprints")
        randomness = self.surroundings.randomness
        try:
            return ChunkIndex(index, randomness), FingerprintTable(prints, randomness)
        except CacheDamaged:
            # I-7: the caches can be deleted at any time; `refresh` reads every pack's index again.
            self.discard_caches()
            return ChunkIndex(index, randomness), FingerprintTable(prints, randomness)
