# SPDX-License-Identifier: AGPL-3.0-or-later
"""Requests and answers byte by byte: what is taken, what is refused with which number, and how answers look."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from everywhen.nbd import protocol as p
from everywhen.nbd.exports import Export, FixedExports
from everywhen.nbd.replies import Replies, merged
from everywhen.nbd.server import Request, ServerSession

MIB = 1 << 20
WRITABLE = p.SEND_FLUSH | p.SEND_FUA | p.SEND_TRIM | p.SEND_WRITE_ZEROES | p.SEND_FAST_ZERO
EXPORTS = FixedExports({"disk": Export(MIB, WRITABLE, maximum=1 << 16), "fixed": Export(MIB, p.READ_ONLY)})
STRUCTURED, SIMPLE = Replies(structured=True), Replies(structured=False)


def transmitting(name: str = "disk", *, structured: bool = True) -> ServerSession:
    """A session in transmission, with base:allocation where there are structured replies."""
    session = ServerSession(EXPORTS, structured=structured)
    encoded = len(name).to_bytes(4, "big") + name.encode()
    contexts = encoded + struct.pack(">II", 1, len(p.ALLOCATION)) + p.ALLOCATION.encode()
    session.receive(p.CLIENT_FLAGS.pack(p.FIXED_NEWSTYLE))
    for number, data in ((p.OPT_STRUCTURED_REPLY, b""), (p.OPT_SET_META_CONTEXT, contexts), (p.OPT_GO, encoded + bytes(2))):
        session.receive(p.OPTION.pack(p.OPTION_MAGIC, number, len(data)) + data)
    session.take_output()
    return session


def request(command: int, offset: int, length: int, flags: int = 0, data: bytes = b"") -> bytes:
    return p.REQUEST.pack(p.REQUEST_MAGIC, flags, command, 7, offset, length) + data


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (p.CMD_READ, 0),
        (p.CMD_READ, p.FLAG_DF),
        (p.CMD_READ, p.FLAG_FUA),
        (p.CMD_TRIM, p.FLAG_FUA),
        (p.CMD_FLUSH, 0),
        (p.CMD_WRITE_ZEROES, p.FLAG_NO_HOLE | p.FLAG_FUA | p.FLAG_FAST_ZERO),
        (p.CMD_BLOCK_STATUS, p.FLAG_REQ_ONE),
        (p.CMD_WRITE, p.FLAG_FUA),
    ],
)
def test_taken(command: int, flags: int) -> None:
    data = b"12345" if command == p.CMD_WRITE else b""
    session = transmitting()
    assert session.receive(request(command, MIB - 5, 5, flags, data)) == [Request(command, flags, 7, MIB - 5, 5, data)]
    assert session.take_output() == b""


@pytest.mark.parametrize(
    ("name", "command", "offset", "length", "flags", "error"),
    [
        ("disk", p.CMD_READ, MIB, 1, 0, p.EINVAL),
        ("disk", p.CMD_READ, (1 << 64) - 1, 1, 0, p.EINVAL),
        ("disk", p.CMD_READ, 0, (1 << 16) + 1, 0, p.EINVAL),
        ("disk", p.CMD_READ, 0, 1, p.FLAG_NO_HOLE, p.EINVAL),
        ("disk", p.CMD_READ, 0, 1, 1 << 15, p.EINVAL),
        ("disk", p.CMD_WRITE, MIB - 1, 2, 0, p.ENOSPC),
        ("disk", p.CMD_WRITE, 0, 2, p.FLAG_DF, p.EINVAL),
        ("disk", p.CMD_TRIM, MIB, 1, 0, p.ENOSPC),
        ("disk", p.CMD_WRITE_ZEROES, 0, MIB + 1, 0, p.ENOSPC),
        ("disk", p.CMD_WRITE_ZEROES, 0, 1, p.FLAG_REQ_ONE, p.EINVAL),
        ("disk", p.CMD_BLOCK_STATUS, 0, MIB + 1, 0, p.EINVAL),
        ("disk", p.CMD_BLOCK_STATUS, 0, 0, 0, p.EINVAL),
        ("disk", 5, 0, 1, 0, p.EINVAL),
        ("disk", 99, 0, 1, 0, p.EINVAL),
        ("fixed", p.CMD_WRITE, 0, 2, 0, p.EPERM),
        ("fixed", p.CMD_TRIM, 0, 2, 0, p.EPERM),
        ("fixed", p.CMD_WRITE_ZEROES, 0, 2, 0, p.EPERM),
        ("fixed", p.CMD_READ, 0, 2, p.FLAG_FUA, p.EINVAL),
    ],
)
def test_refused_with_a_reason(name: str, command: int, offset: int, length: int, flags: int, error: int) -> None:
    session = transmitting(name)
    said = request(command, offset, length, flags, bytes(length) if command == p.CMD_WRITE else b"")
    assert session.receive(said + request(p.CMD_READ, 0, 3)) == [Request(p.CMD_READ, 0, 7, 0, 3, b"")]
    magic, chunk_flags, kind, cookie, size, number, text = struct.unpack_from(">IHHQIIH", output := session.take_output())
    assert (magic, chunk_flags, kind, cookie, number) == (p.CHUNK_MAGIC, p.CHUNK_DONE, p.CHUNK_ERROR, 7, error)
    assert size == 6 + text == len(output) - p.CHUNK.size
    assert text


def test_what_was_not_agreed_on_is_refused() -> None:
    session = transmitting(structured=False)
    for said in (request(p.CMD_BLOCK_STATUS, 0, 1), request(p.CMD_READ, 0, 1, p.FLAG_DF)):
        assert session.receive(said) == []
        assert session.take_output() == p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, p.EINVAL, 7)


@pytest.mark.parametrize(
    "said",
    [request(p.CMD_READ, 0, 1)[1:] + b"x", request(p.CMD_WRITE, 0, (1 << 16) + 1), bytes(28)],
    ids=["shifted", "too much", "nothing"],
)
def test_who_cannot_be_understood_is_hung_up_on(said: bytes) -> None:
    with pytest.raises(p.ProtocolError):
        transmitting().receive(said)


def test_half_a_request_waits_for_the_rest() -> None:
    session, said = transmitting(), request(p.CMD_WRITE, 3, 5, 0, b"12345")
    for at in range(len(said) - 1):
        assert session.receive(said[at : at + 1]) == []
    assert session.receive(said[-1:]) == [Request(p.CMD_WRITE, 0, 7, 3, 5, b"12345")]


def test_reads() -> None:
    assert b"".join(SIMPLE.read(7, 9, b"abc")) == struct.pack(">IIQ", 0x67446698, 0, 7) + b"abc"
    assert b"".join(SIMPLE.read(7, 9, bytes(3))) == struct.pack(">IIQ", 0x67446698, 0, 7) + bytes(3)
    assert b"".join(STRUCTURED.read(7, 9, b"abc")) == struct.pack(">IHHQIQ", 0x668E33EF, 1, 1, 7, 11, 9) + b"abc"
    assert b"".join(STRUCTURED.read(7, 9, bytes(32 << 20))) == struct.pack(">IHHQIQI", 0x668E33EF, 1, 2, 7, 12, 9, 32 << 20)
    almost = bytes(65535) + b"\1"
    assert b"".join(STRUCTURED.read(7, 9, almost))[-65536:] == almost
    assert b"".join(STRUCTURED.read(7, 9, b"")) == struct.pack(">IHHQI", 0x668E33EF, 1, 0, 7, 0)


def test_ends_and_failures() -> None:
    assert STRUCTURED.done(7) == SIMPLE.done(7) == struct.pack(">IIQ", 0x67446698, 0, 7)
    assert SIMPLE.failed(7, p.EIO, "why") == struct.pack(">IIQ", 0x67446698, 5, 7)
    assert STRUCTURED.failed(7, p.EIO, "why") == struct.pack(">IHHQIIH", 0x668E33EF, 1, 0x8001, 7, 9, 5, 3) + b"why"
    assert len(STRUCTURED.failed(7, p.EIO, "x" * 9999)) == p.CHUNK.size + 6 + 4096


def test_status() -> None:
    expected = struct.pack(">IHHQIIIIII", 0x668E33EF, 1, 5, 7, 20, 1, 600, 3, 400, 0)
    assert STRUCTURED.status(7, 1, [(600, 3), (400, 0)]) == expected


@pytest.mark.parametrize(
    ("found", "length", "all_of_it"),
    [
        ([(10, True)], 10, [(10, 3)]),
        ([(10, True), (10, True), (5, False)], 25, [(20, 3), (5, 0)]),
        ([(10, False), (10, True), (10, False)], 30, [(10, 0), (10, 3), (10, 0)]),
        ([(10, False), (1 << 40, True)], 30, [(10, 0), (20, 3)]),
    ],
)
def test_extents(found: list[tuple[int, bool]], length: int, all_of_it: list[tuple[int, int]]) -> None:
    assert list(merged(found, length, one=False)) == all_of_it
    assert list(merged(found, length, one=True)) == all_of_it[:1]


def test_no_more_is_looked_at_than_is_told() -> None:
    looked: list[int] = []

    def blocks() -> Iterator[tuple[int, bool]]:
        for number in range(65536):
            looked.append(number)
            yield 65536, number % 2 == 1

    assert list(merged(blocks(), (1 << 32) - 1, one=True)) == [(65536, 0)]
    assert len(looked) == 2
    assert len(list(merged(blocks(), (1 << 32) - 1, one=False))) == 8192
    assert len(looked) == 2 + 8193
