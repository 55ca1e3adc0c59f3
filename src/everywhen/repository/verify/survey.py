# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which packs there are, whether header, footer and index of each copy can be read, and an index made from them alone.

`verify` trusts no cache: the chunk index that all other commands share may remember records that are gone from the store.
Here a fresh one is built in a scratch folder (I-7). Of sound packs only size and kind are kept: 4 TB are 125,000 packs.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from everywhen.formats.errors import Corrupt, FormatError
from everywhen.formats.ids import PackId, pack_object, pack_of_object
from everywhen.formats.node import Names
from everywhen.formats.pack import HEADER_SIZE, KIND_META, PackHeader, PackIndex, Record
from everywhen.repository.cache_place import in_caches
from everywhen.repository.fetch import ChunkFetcher
from everywhen.repository.gc.live import decodable
from everywhen.repository.index.index import ChunkIndex
from everywhen.repository.repository import Repository
from everywhen.repository.twins import TWINS, twin_of
from everywhen.storage.base import ObjectNotFound

_PARALLEL_READS = 8


class Seen(NamedTuple):
    """A pack: `sizes` in bytes of its object and of its twin, None where there is none; `rows` records in its index."""

    kind: int
    session: str
    sizes: tuple[int | None, int | None]
    rows: int

    @property
    def bytes_stored(self) -> int:
        """Bytes of both copies."""
        return sum(size or 0 for size in self.sizes)


@dataclass(slots=True)
class Flawed:
    """What is wrong with a pack's copies as wholes: per copy (False: the object, True: its twin) a sentence."""

    pack: PackId
    wrong: dict[bool, str] = field(default_factory=dict)
    scanned: bool = False
    """No copy has a readable index: it was made from the records that could be found."""
    holes: dict[int, str] = field(default_factory=dict)
    """Offsets at which the scan met something unreadable."""


class Survey:
    """Use as a context manager: it cleans its scratch folder up."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        scratch = repository.cache / "scratch"
        with in_caches(scratch):
            scratch.mkdir(exist_ok=True)
            self.directory = tempfile.mkdtemp(prefix="verify-", dir=scratch)
        self.index = ChunkIndex(f"{self.directory}/index", repository.surroundings.randomness)
        self.fetcher = ChunkFetcher(self.index, repository.packs, repository.codec, lambda: None)
        self.packs: dict[PackId, Seen] = {}
        self.flawed: dict[PackId, Flawed] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.index.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def look(self) -> bool:
        """Bring everything up to date with the packs there are now; whether anything changed. Raises StorageError."""
        listed = self._list()
        gone = (self.packs.keys() | self.flawed.keys()) - listed.keys()
        for pack in gone:
            self.packs.pop(pack, None)
            self.flawed.pop(pack, None)
        self.index.remove_packs(gone)
        new = [(pack, sizes) for pack, sizes in listed.items() if pack not in self.packs and pack not in self.flawed]
        with ThreadPoolExecutor(_PARALLEL_READS) as pool:
            for (pack, _), index in zip(new, pool.map(lambda item: self._examine(*item), new), strict=True):
                if index is not None:
                    self.index.add_pack(pack, index)
        return bool(gone or new)

    def indexes(self) -> Iterator[tuple[PackId, PackIndex]]:
        """Every pack that has an index, with it."""
        for pack in sorted(self.packs):
            index = self.read_index(pack)
            if index is not None:
                yield pack, index

    def decodable(self, names: Names) -> NDArray[np.bool_]:
        """Of which of the names (n, 32) there is a copy that can be decoded, as far as the index tells."""
        return decodable(self._repository, self.index, names)

    def read_index(self, pack: PackId) -> PackIndex | None:
        """A pack's index, from whichever copy has one, or made by a scan; None when it is gone or has none."""
        for twin in (False, True):
            try:
                return self._index_of(pack, self.packs[pack].sizes[twin], twin=twin)
            except (ObjectNotFound, FormatError):
                continue
        return self._scanned(pack, self.flawed.get(pack, Flawed(pack)))

    def _list(self) -> dict[PackId, tuple[int | None, int | None]]:
        listed: dict[PackId, tuple[int | None, int | None]] = {}
        for found in self._repository.store.list("packs/"):
            pack = pack_of_object(found.name)
            if pack is not None:
                listed[pack] = (found.size, None)
        for found in self._repository.store.list(TWINS + "packs/"):
            pack = pack_of_object(found.name.removeprefix(TWINS))
            if pack is not None:
                listed[pack] = (listed.get(pack, (None, None))[0], found.size)
        return listed

    def _examine(self, pack: PackId, sizes: tuple[int | None, int | None]) -> PackIndex | None:
        """Judge both copies; gives the index. None: the pack was deleted meanwhile, or nothing of it can be read."""
        flaw = Flawed(pack)
        indexes: dict[bool, PackIndex] = {}
        headers: list[PackHeader] = []
        for twin in (False, True):
            if sizes[twin] is None:
                continue
            try:
                header, index, why = self._judge(pack, sizes[twin], twin=twin)
            except ObjectNotFound:
                return None
            headers += [header] if header else []
            if index is not None:
                indexes[twin] = index
            if why:
                flaw.wrong[twin] = why
        kind = headers[0].kind if headers else KIND_META if sizes[1] is not None else 0
        session = headers[0].session if headers else ""
        if sizes[0] is None:
            flaw.wrong[False] = "missing"
        elif kind == KIND_META and sizes[1] is None:
            flaw.wrong[True] = "missing"
        index = next(iter(indexes.values())) if indexes else self._scanned(pack, flaw)
        if flaw.wrong:
            self.flawed[pack] = flaw
        self.packs[pack] = Seen(kind, session, sizes, 0 if index is None else len(index))
        return index

    def _judge(self, pack: PackId, size: int | None, *, twin: bool) -> tuple[PackHeader | None, PackIndex | None, str]:
        """Header, index and what is wrong with one copy."""
        name = twin_of(pack_object(pack)) if twin else pack_object(pack)
        wrong: list[str] = []
        header = index = None
        try:
            header = PackHeader.decode(self._repository.store.get_range(name, 0, HEADER_SIZE))
        except FormatError as error:
            wrong.append(f"header: {error}")
        try:
            opened, index = self._repository.packs.index(pack, size or 0, twin=twin)
            if header is not None and opened.header != header:
                wrong.append("header and footer disagree")
            header = opened.header
        except FormatError as error:
            wrong.append(str(error) if "index" in str(error) or "footer" in str(error) else f"index: {error}")
        if header is not None and (header.pack != pack or header.repository != self._repository.id):
            wrong.append("holds another pack, or one of another repository")
            header = None
        return header, index, "; ".join(dict.fromkeys(wrong))

    def _index_of(self, pack: PackId, size: int | None, *, twin: bool) -> PackIndex:
        if size is None:
            raise Corrupt("there is no such copy")
        return self._repository.packs.index(pack, size, twin=twin)[1]

    def _scanned(self, pack: PackId, flaw: Flawed) -> PackIndex | None:
        for twin in (False, True):
            try:
                _, index, damaged = self._repository.packs.rebuild_index(pack, twin=twin)
                flaw.scanned = True
                if damaged and not flaw.holes:
                    scan = self._repository.packs.scan(pack, twin=twin)
                    flaw.holes = {at: str(found) for at, found in scan if not isinstance(found, Record)}
            except (ObjectNotFound, FormatError):
                continue
            return index
        return None
