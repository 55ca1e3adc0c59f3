# SPDX-License-Identifier: AGPL-3.0-or-later
"""Ways in which a stored repository can be broken: each changes objects in a store, as a bad disk or a hasty hand would.

Needed beside the store is only where things are: `place_of_block`, `place_of_node` ask an open repository for that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from everywhen.formats.ids import ChunkName, pack_object
from everywhen.formats.node import FANOUT
from everywhen.formats.pack import FOOTER_SIZE, FRAME_SIZE, HEADER_SIZE
from everywhen.formats.point import Tree
from everywhen.repository.repository import Repository
from everywhen.repository.twins import twin_of
from everywhen.storage.base import ObjectStore


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chunk is: `length` bytes at `offset` of the object `pack`, frame included."""

    name: ChunkName
    pack: str
    offset: int
    length: int


def place_of_block(repository: Repository, tree: Tree, block: int) -> Place:
    """The copy of a disk's block that is read first."""
    names = repository.block_map(tree).leaf(block // FANOUT)
    assert names is not None
    return place_of_chunk(repository, ChunkName(names[block % FANOUT].tobytes()))


def place_of_node(repository: Repository, tree: Tree, level: int, index: int) -> Place:
    """The copy of a block map node that is read first."""
    name = repository.block_map(tree).node_name(level, index)
    assert name is not None
    return place_of_chunk(repository, name)


def place_of_chunk(repository: Repository, name: ChunkName) -> Place:
    """The copy of a chunk that is read first."""
    repository.refresh()
    copy = repository.index.lookup_one(name)
    assert copy is not None
    return Place(name, pack_object(copy.pack), copy.offset, copy.length)


def copies_of(repository: Repository, name: ChunkName) -> int:
    """How many copies of a chunk the index knows."""
    row = np.frombuffer(name, np.uint8).reshape(1, 32)
    return len(repository.index.all_copies(row.tobytes()))


def flip(store: ObjectStore, name: str, at: int) -> None:
    """One byte changes; `at` may count from the end."""
    content = bytearray(store.get(name))
    content[at] ^= 0x40
    store.put(name, [bytes(content)])


def wipe(store: ObjectStore, name: str, start: int, end: int) -> None:
    """Bytes `start` to `end` become zeroes."""
    content = bytearray(store.get(name))
    end = min(end, len(content))
    content[start:end] = bytes(end - start)
    store.put(name, [bytes(content)])


def cut(store: ObjectStore, name: str, size: int) -> None:
    """Only the first `size` bytes are left (a negative number: so many are gone)."""
    store.put(name, [store.get(name)[:size]])


def remove(store: ObjectStore, name: str) -> None:
    """The object is gone; its twin is not."""
    store.delete(name)


def both(name: str) -> tuple[str, str]:
    """An object and its twin."""
    return name, twin_of(name)


def break_record(store: ObjectStore, place: Place) -> None:
    """The chunk's sealed body is not what was written."""
    flip(store, place.pack, place.offset + FRAME_SIZE + 40)


def break_frame(store: ObjectStore, place: Place) -> None:
    """The 16 bytes in the clear before a chunk are gone."""
    wipe(store, place.pack, place.offset, place.offset + FRAME_SIZE)


def break_header(store: ObjectStore, pack: str) -> None:
    """The pack's header is gone; the footer has a copy."""
    wipe(store, pack, 0, HEADER_SIZE)


def break_footer(store: ObjectStore, pack: str) -> None:
    """The pack's footer is gone."""
    wipe(store, pack, len(store.get(pack)) - FOOTER_SIZE, len(store.get(pack)))


def break_index(store: ObjectStore, pack: str) -> None:
    """The sealed index is not what was written; header, records and footer are."""
    flip(store, pack, -FOOTER_SIZE - 20)


def break_header_and_footer(store: ObjectStore, pack: str) -> None:
    """Nothing of the pack can be opened any more: the salt of its key is gone."""
    break_header(store, pack)
    break_footer(store, pack)


def cut_behind(store: ObjectStore, place: Place) -> None:
    """The pack ends in the middle of the record after this chunk."""
    cut(store, place.pack, place.offset + place.length + FRAME_SIZE + 20)


def empty(store: ObjectStore, name: str) -> None:
    """The object is there, without content: what some file systems leave after a power cut."""
    store.put(name, [b""])


Recipe = Callable[[ObjectStore, str], None]
"""What breaks one object."""
