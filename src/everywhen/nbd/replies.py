# SPDX-License-Identifier: AGPL-3.0-or-later
"""The bytes of a server's answers, simple or structured (doc/proto.md, "Transmission"). No state: any thread may make them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from everywhen.nbd import protocol as p

_DATA = struct.Struct(">IHHQIQ")  # a chunk's head, and where its content begins
_HOLE = struct.Struct(">IHHQIQI")  # and how long it is
_ERROR = struct.Struct(">IHHQIIH")  # a chunk's head, the error, and how long the text is
_EXTENTS = struct.Struct(">IHHQII")  # a chunk's head, and the context
_EXTENT = struct.Struct(">II")
_LONGEST_HOLE = 32 << 20
_ZEROES = bytes(_LONGEST_HOLE)
"""Never written, so it takes no memory: the system shows one page of zeroes everywhere."""
_MOST_EXTENTS = 8192
"""In one answer: 64 KiB. Who wants more asks again from there."""


class Replies:
    """Answers as one client wants them."""

    def __init__(self, *, structured: bool) -> None:
        self._structured = structured

    def read(self, cookie: int, offset: int, data: bytes) -> tuple[bytes, ...]:
        """What a read asked for, as pieces to be sent: zeroes are not sent, but named. One chunk, so DF is always held."""
        if not self._structured:
            return p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, 0, cookie), data
        size = len(data)
        if _ZEROES.startswith(data):  # 30 ns where the first bytes are none; memory's speed else
            if not size:
                return (p.CHUNK.pack(p.CHUNK_MAGIC, p.CHUNK_DONE, p.CHUNK_NONE, cookie, 0),)
            return (_HOLE.pack(p.CHUNK_MAGIC, p.CHUNK_DONE, p.CHUNK_HOLE, cookie, 12, offset, size),)
        return _DATA.pack(p.CHUNK_MAGIC, p.CHUNK_DONE, p.CHUNK_DATA, cookie, 8 + size, offset), data

    def done(self, cookie: int) -> bytes:
        """A request that has no content in its answer was carried out."""
        return p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, 0, cookie)

    def failed(self, cookie: int, error: int, why: str = "") -> bytes:
        """A request that failed: an error number of the protocol, and a text for people."""
        if not self._structured:
            return p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, error, cookie)
        text = p.short(why)
        return _ERROR.pack(p.CHUNK_MAGIC, p.CHUNK_DONE, p.CHUNK_ERROR, cookie, 6 + len(text), error, len(text)) + text

    def status(self, cookie: int, context: int, extents: Iterable[tuple[int, int]]) -> bytes:
        """Extents (bytes, flags) from where the request began; at least one."""
        body = b"".join(_EXTENT.pack(*extent) for extent in extents)
        return _EXTENTS.pack(p.CHUNK_MAGIC, p.CHUNK_DONE, p.CHUNK_BLOCK_STATUS, cookie, 4 + len(body), context) + body


def merged(found: Iterable[tuple[int, bool]], length: int, *, one: bool) -> Iterator[tuple[int, int]]:
    """Extents of base:allocation, of (bytes, zero): equal neighbours as one, at most `length` bytes; only the first if `one`.

    No more is taken from `found` than is needed: who asks for one extent of 4 GiB does not want 65,536 blocks looked at.
    """
    given, run, kind = 0, 0, False
    yielded = 0
    for size, zero in found:
        size = min(size, length - given - run)
        if run and zero != kind:
            yield run, _flags(kind)
            given, run, yielded = given + run, 0, yielded + 1
            if one or yielded == _MOST_EXTENTS:
                return
        run, kind = run + size, zero
        if given + run == length:
            break
    if run:
        yield run, _flags(kind)


def _flags(zero: bool) -> int:
    return p.STATE_HOLE | p.STATE_ZERO if zero else 0
