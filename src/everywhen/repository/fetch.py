# SPDX-License-Identifier: AGPL-3.0-or-later
"""Chunks by name: found in the index, read from packs in few large reads, opened, checked, decompressed.

A copy that is missing or damaged is replaced by another one (another pack, the pack's twin, a fresh index after gc moved
things) before `Damaged` is raised (rules 4.9.2 and 4.9.6).
"""

from __future__ import annotations

import itertools
import operator
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from everywhen.formats.errors import Corrupt, FormatError
from everywhen.formats.ids import CHUNK_NAME_SIZE, ChunkName, PackId, pack_object
from everywhen.formats.node import Names
from everywhen.formats.pack import Record
from everywhen.repository.chunk import ChunkCodec
from everywhen.repository.errors import Damaged, DamagedChunk
from everywhen.repository.index.index import ChunkIndex
from everywhen.repository.near import near
from everywhen.repository.packs import OpenPack, PackReader
from everywhen.repository.twins import twin_of
from everywhen.storage.base import ObjectNotFound

_BASE_CACHE = 64 << 20
_FORMS_KEPT = 4096
"""Deltas whose bases' names are remembered, at about 250 bytes each: more than are read before they are asked for."""
_ATTEMPTS = 8
_TOGETHER = 32
"""Names from which on a search for all of them takes less than one for each: 5 us a name, 120 us and more for any number."""

T = TypeVar("T")


class ChunkFetcher:
    """Reads chunks of one repository. Safe to use from several threads."""

    def __init__(self, index: ChunkIndex, packs: PackReader, codec: ChunkCodec, refresh: Callable[[], None]) -> None:
        self._index = index
        self._packs = packs
        self._codec = codec
        self._refresh = refresh
        self._opened: dict[PackId, OpenPack] = {}
        self._contents: OrderedDict[bytes, bytes] = OrderedDict()
        self._contents_size = 0
        self._bases: OrderedDict[bytes, tuple[bytes, ...]] = OrderedDict()
        """Of deltas that were read, by name."""
        self._lock = threading.Lock()

    @property
    def far(self) -> bool:
        """Whether each request takes a trip over a network."""
        return self._packs.store.traits.remote

    def read(self, name: ChunkName) -> bytes:
        """Content of one chunk. Raises Damaged."""
        content = self._cached(name)
        if content is None:
            content = self.read_many(_names([name]))[0]
            self._remember(name, content)
        return content

    def read_many(self, names: Names) -> list[bytes]:
        """Contents of chunks given as (n, 32), none all-zero, in that order. Raises Damaged."""
        return list(self.each(names))

    def read_many_to_follow(self, names: Names) -> list[bytes]:
        """`read_many` for who makes successors of these chunks: so that `full_forms` need not read and unpack them again."""
        return list(self.each(names, followed=True))

    def each(self, names: Names, *, followed: bool = False) -> Iterator[bytes]:
        """`read_many` for who uses them one by one: all are read together, each is unpacked when its turn comes."""
        keys = [row.tobytes() for row in names]
        contents: dict[bytes, bytes] = {}
        try:
            records = self._records(list(dict.fromkeys(keys)))
            self._load_bases(records, contents)
        except Damaged:
            records = {}
        for key in keys:
            content = contents.get(key)
            if content is None:
                try:
                    content = self._decode(records[key], contents) if key in records else self._salvage(key)
                except Damaged:
                    # A copy that can be opened need not be one that can be decoded: gc may have left a delta without its base.
                    content = self._salvage(key)
            if followed and key in records:
                self._remember_form(records[key], content)
            yield content

    def full_forms(self, names: Names) -> list[list[tuple[bytes, bytes]]]:
        """What successors of these chunks, (n, 32), can be deltas against: for each (name, content) of itself, or of its bases.

        Only what has a full copy that will stay (4.9.3); nothing where there is none or it cannot be read: it is a hint.
        Nothing for all-zero names. Many at once: a search in the index costs 100 µs, for one name or for 64.
        """
        keys = [row.tobytes() for row in names]
        forms = self._full_names([key for key in dict.fromkeys(keys) if any(key)])
        wanted = dict.fromkeys(itertools.chain(*forms.values()))
        contents = {base: content for base in wanted if (content := self._cached(base)) is not None}
        missing = [base for base in wanted if base not in contents]
        for base, content in _each(missing, lambda some: dict(zip(some, self.read_many(_names(some)), strict=True))).items():
            contents[base] = content
            self._remember(base, content)
        usable = {key for key, bases in forms.items() if all(base in contents for base in bases)}
        return [[(base, contents[base]) for base in forms[key]] if key in usable else [] for key in keys]

    def _full_names(self, keys: list[bytes]) -> dict[bytes, tuple[bytes, ...]]:
        """By key what `full_forms` may give: the key where it is stored full, else its bases if all of them are."""
        # The cache of contents does not know how a chunk is stored: only the index does.
        full = self._found(keys, full_only=True)
        forms: dict[bytes, tuple[bytes, ...]] = {key: (key,) for key in full}
        with self._lock:
            deltas = {key: self._bases[key] for key in keys if key not in full and key in self._bases}
        records = _each(list(self._found([key for key in keys if key not in full and key not in deltas])), self._records)
        deltas |= {key: record.bases for key, record in records.items()}
        whole = self._found(list(set(itertools.chain(*deltas.values()))), full_only=True)
        forms |= {key: bases for key, bases in deltas.items() if whole.issuperset(bases)}
        return forms

    def _found(self, keys: list[bytes], *, full_only: bool = False) -> set[bytes]:
        """Those of the keys that the index knows."""
        if not keys:
            return set()
        return set(itertools.compress(keys, self._index.lookup(_names(keys), full_only=full_only).found))

    def _load_bases(self, records: dict[bytes, Record], contents: dict[bytes, bytes]) -> None:
        """Put the contents of all bases of `records` into `contents`."""
        wanted = dict.fromkeys(base for record in records.values() for base in record.bases)
        missing = []
        for base in wanted:
            record = records.get(base)
            content = self._cached(base)
            if content is None and record is not None and not record.bases:
                content = self._decode(record, contents)
            if content is None:
                missing.append(base)
            else:
                contents[base] = content
        for base, record in self._records(missing, full=True).items():
            contents[base] = self._decode(record, contents)
            self._remember(base, contents[base])

    def _decode(self, record: Record, contents: dict[bytes, bytes]) -> bytes:
        try:
            return self._codec.decode(record, [contents[base] for base in record.bases])
        except Corrupt as error:
            raise DamagedChunk(record.name, f"chunk {record.name.hex()}: {error}") from error

    def _records(self, keys: list[bytes], *, full: bool = False) -> dict[bytes, Record]:
        """One record of each name; with `full` none that is a delta."""
        records: dict[bytes, Record] = {}
        for pack, rows in itertools.groupby(self._placed(keys, full=full), key=operator.itemgetter(0)):
            for part in near([(offset, offset + length, key) for _, offset, length, key in rows]):
                start, end = part[0][0], part[-1][1]
                self._read_group(pack, start, end - start, [(key, at - start) for at, _, key in part], records)
        for key in keys:
            if key not in records:
                records[key] = self._recover(key, full=full)
        return records

    def _placed(self, keys: list[bytes], *, full: bool) -> list[tuple[PackId, int, int, bytes]]:
        """(pack, offset, length, name) of the best copy of each that is known, in the order in which they lie in packs."""
        if len(keys) < _TOGETHER:
            copies = ((key, self._index.lookup_one(key, full_only=full)) for key in keys)
            return sorted((copy.pack, copy.offset, copy.length, key) for key, copy in copies if copy)
        found = self._index.lookup(_names(keys), full_only=full)
        usable = np.flatnonzero(found.found)
        columns = (column[usable].tolist() for column in (found.pack, found.offset, found.length))
        placed = zip(*columns, usable.tolist(), strict=True)
        return sorted((self._index.pack_id(pack), offset, length, keys[row]) for pack, offset, length, row in placed)

    def _read_group(
        self, pack: PackId, start: int, length: int, wanted: list[tuple[bytes, int]], records: dict[bytes, Record]
    ) -> None:
        """Read part of a pack and open the wanted records; what fails stays missing, for `_recover`."""
        try:
            opened = self._open(pack)
            data = memoryview(self._packs.store.get_range(pack_object(pack), start, length))
        except (ObjectNotFound, FormatError):
            return
        for key, at in wanted:
            try:
                record = opened.open_record(data[at:])
            except FormatError:
                continue
            if record.name == key:
                records[key] = record

    def _recover(self, key: bytes, *, full: bool) -> Record:
        """The record from any copy there is; with a fresh index if need be. Raises Damaged."""
        return self._first_good(key, full=full, use=lambda record: record)

    def _salvage(self, key: bytes) -> bytes:
        """The content by any copy that can be opened and whose bases can be had. Raises Damaged."""

        def decoded(record: Record) -> bytes:
            bases = {base: self._first_good(base, full=True, use=lambda full: self._decode(full, {})) for base in record.bases}
            return self._decode(record, bases)

        return self._first_good(key, full=False, use=decoded)

    def _first_good(self, key: bytes, *, full: bool, use: Callable[[Record], T]) -> T:
        """What `use` makes of the first copy for which it does not raise Damaged. Raises Damaged."""
        reasons: list[str] = []
        for attempt in range(_ATTEMPTS):
            vanished = False
            for copy in self._index.all_copies(key):
                if full and copy.is_delta:
                    continue
                for twin in (False, True):
                    name = twin_of(pack_object(copy.pack)) if twin else pack_object(copy.pack)
                    try:
                        opened = self._packs.open(copy.pack, twin=twin)
                        record = opened.open_record(self._packs.store.get_range(name, copy.offset, copy.length))
                        if record.name != key:
                            raise Corrupt("another chunk stands there")
                        return use(record)
                    except ObjectNotFound:
                        vanished |= not twin
                    except (FormatError, Damaged) as error:
                        reasons.append(f"{name} at byte {copy.offset}: {error}")
            # Again as long as packs vanish under us: gc copies what is needed before it deletes.
            if attempt and not vanished:
                break
            self._refresh()
        kind = "full copy of chunk" if full else "copy of chunk"
        found = f" ({'; '.join(dict.fromkeys(reasons))})" if reasons else ""
        raise DamagedChunk(key, f"no readable {kind} {key.hex()}{found}")

    def _open(self, pack: PackId) -> OpenPack:
        opened = self._opened.get(pack)
        if opened is None:
            opened = self._opened[pack] = self._packs.open(pack)
        return opened

    def _cached(self, key: bytes) -> bytes | None:
        with self._lock:
            content = self._contents.get(key)
            if content is not None:
                self._contents.move_to_end(key)
            return content

    def _remember_form(self, record: Record, content: bytes) -> None:
        if not record.bases:
            self._remember(record.name, content)
            return
        with self._lock:
            self._bases[record.name] = record.bases
            if len(self._bases) > _FORMS_KEPT:
                self._bases.popitem(last=False)

    def _remember(self, key: bytes, content: bytes) -> None:
        with self._lock:
            if key not in self._contents:
                self._contents[key] = content
                self._contents_size += len(content)
                while self._contents_size > _BASE_CACHE:
                    _, oldest = self._contents.popitem(last=False)
                    self._contents_size -= len(oldest)


def _names(keys: list[bytes]) -> Names:
    return np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), CHUNK_NAME_SIZE)


def _each(keys: list[bytes], read: Callable[[list[bytes]], dict[bytes, T]]) -> dict[bytes, T]:
    """What `read` gives for these keys, together or else one by one, without those it raises Damaged for."""
    if not keys:
        return {}
    try:
        return read(keys)
    except Damaged:
        return {} if len(keys) == 1 else {key: value for one in keys for key, value in _each([one], read).items()}
