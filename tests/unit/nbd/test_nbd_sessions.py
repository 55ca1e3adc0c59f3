# SPDX-License-Identifier: AGPL-3.0-or-later
"""Both sides of the protocol against each other, however the bytes are cut; and what a rude peer is told."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everywhen.nbd import protocol as p
from everywhen.nbd.client import ClientSession, Reply, Status
from everywhen.nbd.exports import Export, FixedExports
from everywhen.nbd.negotiation import Phase
from everywhen.nbd.server import Request, ServerSession

DISK = Export(1 << 20, p.SEND_FLUSH | p.SEND_WRITE_ZEROES, maximum=1 << 16)
EXPORTS = FixedExports({"disk": DISK, "read only": Export(4096, p.READ_ONLY)})
cuts = st.lists(st.integers(1, 40), max_size=200)


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    found, at = [], 0
    for size in sizes:
        found.append(data[at : at + size])
        at += size
    return [piece for piece in [*found, data[at:]] if piece]


def talk(client: ClientSession, server: ServerSession, sizes: list[int]) -> tuple[list[Request], list[Reply]]:
    """Let them exchange bytes until neither has any."""
    requests: list[Request] = []
    replies: list[Reply] = []
    while True:
        to_server, to_client = client.take_output(), server.take_output()
        if not to_server and not to_client:
            return requests, replies
        for piece in pieces(to_server, sizes):
            requests += server.receive(piece)
        for piece in pieces(to_client, sizes):
            replies += client.receive(piece)


def connected(name: str = "disk", sizes: list[int] | None = None) -> tuple[ClientSession, ServerSession]:
    client, server = ClientSession(name, ["base:allocation"]), ServerSession(EXPORTS)
    talk(client, server, sizes or [])
    assert client.ready
    assert server.phase is Phase.TRANSMISSION
    return client, server


@given(cuts, st.binary(min_size=1, max_size=300))
def test_writes_and_reads_go_through(sizes: list[int], content: bytes) -> None:
    client, server = connected(sizes=sizes)
    assert (client.offer.size, client.offer.maximum) == (DISK.size, DISK.maximum)
    assert client.offer.contexts == {}  # the server has no structured replies, so no contexts either
    written, zeroed, read = client.write(512, content), client.write_zeroes(4096, 100), client.read(512, len(content))
    requests, _ = talk(client, server, sizes)
    assert [(r.command, r.offset, r.length, r.data) for r in requests] == [
        (p.CMD_WRITE, 512, len(content), content),
        (p.CMD_WRITE_ZEROES, 4096, 100, b""),
        (p.CMD_READ, 512, len(content), b""),
    ]
    server.reply(requests[2].cookie, data=content)
    server.reply(requests[1].cookie, p.EIO)
    server.reply(requests[0].cookie)
    _, replies = talk(client, server, sizes)
    assert replies == [Reply(read, 0, content, {}), Reply(zeroed, p.EIO, b"", {}), Reply(written, 0, b"", {})]
    client.disconnect()
    assert talk(client, server, sizes) == ([], [])
    assert server.phase is Phase.ENDED


@pytest.mark.parametrize(
    ("name", "command", "offset", "length", "error"),
    [
        ("disk", p.CMD_READ, (1 << 20) - 5, 6, p.EINVAL),
        ("disk", p.CMD_READ, 0, 1 << 17, p.EINVAL),
        ("disk", p.CMD_WRITE_ZEROES, 1 << 20, 1, p.ENOSPC),
        ("disk", p.CMD_TRIM, 0, 1, p.EINVAL),
        ("disk", 99, 0, 1, p.EINVAL),
        ("read only", p.CMD_WRITE_ZEROES, 0, 1, p.EPERM),
        ("read only", p.CMD_FLUSH, 0, 0, p.EPERM),
    ],
)
def test_what_an_export_does_not_take_is_refused(name: str, command: int, offset: int, length: int, error: int) -> None:
    _, server = connected(name)
    assert server.receive(p.REQUEST.pack(p.REQUEST_MAGIC, 0, command, 7, offset, length)) == []
    assert server.take_output() == p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, error, 7)
    assert server.phase is Phase.TRANSMISSION


@pytest.mark.parametrize(
    "data",
    [
        p.REQUEST.pack(1, 0, p.CMD_READ, 1, 0, 1),
        p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_WRITE, 1, 0, (1 << 16) + 1),
    ],
    ids=["magic", "a write that is too long"],
)
def test_a_client_that_cannot_be_understood_is_hung_up_on(data: bytes) -> None:
    _, server = connected()
    with pytest.raises(p.ProtocolError):
        server.receive(data)


def option(number: int, data: bytes = b"") -> bytes:
    return p.OPTION.pack(p.OPTION_MAGIC, number, len(data)) + data


def answers(output: bytes) -> list[tuple[int, int]]:
    """(option, type) of option replies."""
    found, at = [], 0
    while at < len(output):
        _, number, kind, length = p.OPTION_REPLY.unpack_from(output, at)
        found.append((number, kind))
        at += p.OPTION_REPLY.size + length
    return found


def negotiating() -> ServerSession:
    server = ServerSession(EXPORTS)
    server.take_output()
    server.receive(p.CLIENT_FLAGS.pack(p.FIXED_NEWSTYLE))
    return server


def test_options() -> None:
    server = negotiating()
    server.receive(option(p.OPT_LIST) + option(p.OPT_LIST, b"x") + option(p.OPT_STRUCTURED_REPLY) + option(77))
    server.receive(option(p.OPT_INFO, struct.pack(">I", 4) + b"none" + bytes(2)) + option(p.OPT_GO, b"\0\0\0\x04di"))
    assert answers(server.take_output()) == [
        (p.OPT_LIST, p.REP_SERVER),
        (p.OPT_LIST, p.REP_SERVER),
        (p.OPT_LIST, p.REP_ACK),
        (p.OPT_LIST, p.REP_ERR_INVALID),
        (p.OPT_STRUCTURED_REPLY, p.REP_ERR_UNSUP),
        (77, p.REP_ERR_UNSUP),
        (p.OPT_INFO, p.REP_ERR_UNKNOWN),
        (p.OPT_GO, p.REP_ERR_INVALID),
    ]
    server.receive(option(p.OPT_ABORT))
    assert server.phase is Phase.ENDED


def test_an_old_client_chooses_without_more_words() -> None:
    server = negotiating()
    server.receive(option(p.OPT_EXPORT_NAME, b"disk"))
    assert server.take_output() == p.EXPORT_NAME_DATA.pack(1 << 20, DISK.flags | p.HAS_FLAGS) + bytes(124)
    with pytest.raises(p.ProtocolError, match="no export"):
        negotiating().receive(option(p.OPT_EXPORT_NAME, b"none"))


@given(st.binary(max_size=200))
def test_noise_is_refused_or_waited_on(noise: bytes) -> None:
    server = ServerSession(EXPORTS)
    try:
        server.receive(noise)
    except p.ProtocolError:
        return
    assert server.phase in (Phase.FLAGS, Phase.OPTIONS, Phase.ENDED)


@given(st.binary(min_size=1, max_size=200))
def test_a_client_understands_no_noise(noise: bytes) -> None:
    client = ClientSession("disk")
    try:
        client.receive(noise)
    except p.ProtocolError:
        return
    assert not client.ready


def structured(client: ClientSession) -> None:
    """Bring a client to where a server with structured replies has it."""
    client.receive(p.GREETING.pack(p.MAGIC, p.OPTION_MAGIC, p.FIXED_NEWSTYLE))
    ack = p.OPTION_REPLY.pack(p.OPTION_REPLY_MAGIC, p.OPT_STRUCTURED_REPLY, p.REP_ACK, 0)
    context = struct.pack(">I", 5) + b"base:allocation"
    named = p.OPTION_REPLY.pack(p.OPTION_REPLY_MAGIC, p.OPT_SET_META_CONTEXT, p.REP_META_CONTEXT, len(context)) + context
    done = p.OPTION_REPLY.pack(p.OPTION_REPLY_MAGIC, p.OPT_SET_META_CONTEXT, p.REP_ACK, 0)
    size = p.INFO_EXPORT_DATA.pack(p.INFO_EXPORT, 1 << 20, p.HAS_FLAGS)
    told = p.OPTION_REPLY.pack(p.OPTION_REPLY_MAGIC, p.OPT_GO, p.REP_INFO, len(size)) + size
    go = p.OPTION_REPLY.pack(p.OPTION_REPLY_MAGIC, p.OPT_GO, p.REP_ACK, 0)
    client.receive(ack + named + done + told + go)
    assert client.ready
    assert client.offer.contexts == {"base:allocation": 5}


def chunk(kind: int, cookie: int, data: bytes, *, last: bool = False) -> bytes:
    return p.CHUNK.pack(p.CHUNK_MAGIC, p.CHUNK_DONE if last else 0, kind, cookie, len(data)) + data


def test_structured_replies() -> None:
    client = ClientSession("disk", ["base:allocation"])
    structured(client)
    read, status, failed = client.read(100, 10), client.block_status(0, 1000), client.read(0, 4)
    replies = client.receive(
        chunk(p.CHUNK_DATA, read, struct.pack(">Q", 104) + b"abcdef")
        + chunk(p.CHUNK_BLOCK_STATUS, status, struct.pack(">IIIII", 5, 600, 3, 400, 0), last=True)
        + chunk(p.CHUNK_HOLE, read, struct.pack(">QI", 100, 4), last=True)
        + chunk(p.CHUNK_IS_ERROR | 1, failed, struct.pack(">IH", p.EIO, 0), last=True)
    )
    assert replies[0] == Reply(status, 0, b"", {5: [Status(600, 3), Status(400, 0)]})
    assert replies[1] == Reply(read, 0, b"\0\0\0\0abcdef", {})
    assert (replies[2].cookie, replies[2].error) == (failed, p.EIO)


@pytest.mark.parametrize(
    "data",
    [
        chunk(p.CHUNK_DATA, 1, struct.pack(">Q", 50) + b"x"),
        chunk(p.CHUNK_DATA, 1, struct.pack(">Q", 100) + b"x", last=True),
        chunk(p.CHUNK_DATA, 9, struct.pack(">Q", 100) + b"x"),
        chunk(77, 1, b""),
        p.CHUNK.pack(p.CHUNK_MAGIC, 0, p.CHUNK_DATA, 1, 1 << 31),
    ],
    ids=["outside", "too little", "never asked", "unknown", "too long"],
)
def test_a_server_that_answers_nonsense(data: bytes) -> None:
    client = ClientSession("disk", ["base:allocation"])
    structured(client)
    client.read(100, 10)
    with pytest.raises(p.ProtocolError):
        client.receive(data)
