# SPDX-License-Identifier: AGPL-3.0-or-later
"""One record of a pack, and what a chunk's copy is worth."""

from __future__ import annotations

from everywhen.formats.errors import FormatError
from everywhen.formats.ids import PackId, pack_object
from everywhen.formats.pack import FRAME_SIZE, MAX_BODY, Record
from everywhen.repository.index.index import ChunkIndex, Copy
from everywhen.repository.repository import Repository
from everywhen.repository.twins import twin_of
from everywhen.storage.base import ObjectNotFound


def read_record(repository: Repository, pack: PackId, offset: int, *, copies: tuple[bool, ...] = (False, True)) -> Record | str:
    """The record at `offset`, from the pack or its twin (`copies`); else what is wrong with it there."""
    why = "missing"
    for twin in copies:
        name = twin_of(pack_object(pack)) if twin else pack_object(pack)
        try:
            opened = repository.packs.open(pack, twin=twin)
            return opened.open_record(repository.store.get_range(name, offset, FRAME_SIZE + MAX_BODY))
        except ObjectNotFound:
            continue
        except FormatError as error:
            why = str(error)
    return why


def is_decodable(repository: Repository, index: ChunkIndex, copy: Copy) -> bool:
    """Whether the copy can be decoded as far as the index tells: it is full, or its bases have full copies.

    A delta is read, since the index knows its bases by keys only.
    """
    if not copy.is_delta:
        return True
    record = read_record(repository, copy.pack, copy.offset)
    if isinstance(record, str):
        return False
    return all(any(not full.is_delta for full in index.all_copies(base)) for base in record.bases)
