# SPDX-License-Identifier: AGPL-3.0-or-later
"""Putting a pack's object together again from what is good of it and of its twin (rule 4.9.6).

Nothing is sealed anew: a pack's key must not seal a second index (rule 4.9.4). Headers, frames and footers are in the
clear and follow from one another, bodies and the sealed index are taken where their tags are right. So what comes out is
what was stored, byte for byte, or else names the records that are lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from everywhen.formats.errors import FormatError
from everywhen.formats.ids import PackId, pack_object
from everywhen.formats.pack import (
    FOOTER_SIZE,
    FRAME_SIZE,
    HEADER_SIZE,
    KIND_META,
    PackFooter,
    PackHeader,
    PackIndex,
    decode_frame,
    encode_frame,
)
from everywhen.repository.packs import OpenPack, PackReader
from everywhen.repository.repository import Repository
from everywhen.repository.twins import put_twice, twin_of
from everywhen.storage.base import ObjectNotFound
from everywhen.storage.memory import MemoryStore


@dataclass(frozen=True, slots=True)
class Mended:
    """A pack's bytes as they were stored, but for the records at the offsets in `lost`."""

    kind: int
    content: bytes
    lost: frozenset[int]


def mend_pack(repository: Repository, pack: PackId) -> Mended | None:
    """Write the pack's copies again where they differ from what they should be. Raises StorageError.

    None: no copy has an index that can be read, so nothing was written.
    """
    name = pack_object(pack)
    copies = {at: content for at in (name, twin_of(name)) if (content := _get(repository, at)) is not None}
    mended = _mended(repository, pack, list(copies.values()))
    if mended is None:
        return None
    if mended.kind == KIND_META:
        if copies.get(name) != mended.content or copies.get(twin_of(name)) != mended.content:
            put_twice(repository.store, name, [mended.content])
    elif copies.get(name) != mended.content:
        repository.store.put(name, [mended.content])
    return mended


def _mended(repository: Repository, pack: PackId, copies: list[bytes]) -> Mended | None:
    for header in _headers(copies):
        if header.pack != pack or header.repository != repository.id:
            continue
        for content in copies:
            for whole in _with_ends(header, content):
                found = _open(repository, pack, whole)
                if found is not None:
                    return _with_records(header, *found, whole, [whole, *copies])
    return None


def _headers(copies: list[bytes]) -> Iterator[PackHeader]:
    for content in copies:
        with suppress(FormatError):
            yield PackHeader.decode(content[:HEADER_SIZE])
        with suppress(FormatError):
            yield PackFooter.decode(content[-FOOTER_SIZE:]).header


def _with_ends(header: PackHeader, content: bytes) -> Iterator[bytes]:
    """The content with a good header and footer: the footer's own, else the one that the records tell."""
    if len(content) < HEADER_SIZE + FOOTER_SIZE:
        return
    body = content[HEADER_SIZE:-FOOTER_SIZE]
    try:
        footer = PackFooter.decode(content[-FOOTER_SIZE:])
    except FormatError:
        at, count = HEADER_SIZE, 0
        while True:
            try:
                _, length = decode_frame(content, at)
            except FormatError:
                break
            at, count = at + FRAME_SIZE + length, count + 1
        footer = PackFooter(header, at, len(content) - FOOTER_SIZE - at, count)
    if footer.index_length >= 0 and footer.index_offset + footer.index_length + FOOTER_SIZE == len(content):
        tail = PackFooter(header, footer.index_offset, footer.index_length, footer.count).encode()
        yield header.encode() + body + tail


def _open(repository: Repository, pack: PackId, content: bytes) -> tuple[OpenPack, PackIndex] | None:
    store = MemoryStore()
    store.put(pack_object(pack), [content])
    try:
        return PackReader(store, repository.id, repository.ciphers).index(pack, len(content))
    except FormatError:
        return None


def _with_records(header: PackHeader, opened: OpenPack, index: PackIndex, whole: bytes, copies: list[bytes]) -> Mended:
    parts = [whole[:HEADER_SIZE]]
    lost: set[int] = set()
    at = HEADER_SIZE
    for ordinal, (offset, length) in enumerate(zip(index.offsets.tolist(), index.lengths.tolist(), strict=True)):
        frame = encode_frame(ordinal, length)
        start, at = offset + FRAME_SIZE, offset + FRAME_SIZE + length
        for content in copies:
            if _opens(opened, frame + content[start:at]):
                parts.append(frame + content[start:at])
                break
        else:
            parts.append(whole[offset:at])
            lost.add(offset)
    parts.append(whole[at:])
    return Mended(header.kind, b"".join(parts), frozenset(lost))


def _opens(opened: OpenPack, record: bytes) -> bool:
    try:
        opened.open_record(record)
    except FormatError:
        return False
    return True


def _get(repository: Repository, name: str) -> bytes | None:
    try:
        return repository.store.get(name)
    except ObjectNotFound:
        return None
