# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whatever an NBD server answers is understood, waited on, or refused: its answers with bytes changed, removed, repeated."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings

from everywhen.nbd import protocol as p
from everywhen.nbd.client import ClientSession, Reply
from tests.long_forms import SOAK
from tests.message_mutations import Mutation, mutated, mutations

MANY = settings(max_examples=20000 if SOAK else 1000)
CONTEXT = "base:allocation"
SIZE = 1 << 20


def told(option: int, kind: int, data: bytes = b"") -> bytes:
    return p.OPTION_REPLY.pack(p.OPTION_REPLY_MAGIC, option, kind, len(data)) + data


def chunk(kind: int, cookie: int, data: bytes, *, last: bool = True) -> bytes:
    return p.CHUNK.pack(p.CHUNK_MAGIC, p.CHUNK_DONE if last else 0, kind, cookie, len(data)) + data


HANDSHAKE = [
    p.GREETING.pack(p.MAGIC, p.OPTION_MAGIC, p.FIXED_NEWSTYLE | p.NO_ZEROES),
    told(p.OPT_STRUCTURED_REPLY, p.REP_ACK),
    told(p.OPT_SET_META_CONTEXT, p.REP_META_CONTEXT, struct.pack(">I", 5) + CONTEXT.encode()),
    told(p.OPT_SET_META_CONTEXT, p.REP_ACK),
    told(p.OPT_GO, p.REP_INFO, p.INFO_EXPORT_DATA.pack(p.INFO_EXPORT, SIZE, p.HAS_FLAGS)),
    told(p.OPT_GO, p.REP_INFO, p.INFO_BLOCK_SIZE_DATA.pack(p.INFO_BLOCK_SIZE, 1, 4096, 1 << 16)),
    told(p.OPT_GO, p.REP_ACK),
]
ANSWERS = [
    chunk(p.CHUNK_DATA, 1, struct.pack(">Q", 100) + bytes(range(60)), last=False),
    chunk(p.CHUNK_HOLE, 1, struct.pack(">QI", 160, 40)),
    chunk(p.CHUNK_BLOCK_STATUS, 2, struct.pack(">IIIII", 5, 600, 3, 400, 0)),
    chunk(p.CHUNK_IS_ERROR | 1, 3, struct.pack(">IH", p.EIO, 0)),
    p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, p.ENOSPC, 4),
]
"""To a read of 100 bytes at 100, a block status, a read and a write."""
MESSAGES = [*HANDSHAKE, *ANSWERS]


def played(messages: list[bytes]) -> tuple[ClientSession, list[Reply]]:
    """A client to which a server says all this, and which asks as soon as it may."""
    client, replies, asked = ClientSession("disk", [CONTEXT]), list[Reply](), False
    for message in messages:
        replies += client.receive(message)
        client.take_output()
        if client.ready and not asked:
            asked = True
            client.read(100, 100)
            client.block_status(0, 1000)
            client.read(0, 4)
            client.write(0, b"x")
    return client, replies


def test_the_recorded_answers_are_understood() -> None:
    client, replies = played(MESSAGES)
    assert client.offer.size == SIZE
    assert [reply.cookie for reply in replies] == [1, 2, 3, 4]
    assert replies[0].data == bytes(range(60)) + bytes(40)


@pytest.mark.parametrize(
    "changes",
    [
        [(4, "remove", 0, b"x")],
        [(5, "change", 30, bytes(4))],
        [(2, "change", 26, b"other")],
        [(9, "change", 23, b"\x07")],
        [(9, "change", 15, b"\x01")],
    ],
    ids=["no size", "requests of 0 bytes", "a context not asked for", "one not agreed on", "extents for a read"],
)
def test_a_server_that_cannot_be_used(changes: list[Mutation]) -> None:
    with pytest.raises(p.ProtocolError):
        played(mutated(MESSAGES, changes))


@MANY
@given(mutations(len(MESSAGES)))
def test_any_answers(changes: list[Mutation]) -> None:
    try:
        client, replies = played(mutated(MESSAGES, changes))
    except p.ProtocolError:
        return
    asked = {1: 100, 2: 0, 3: 4, 4: 0}
    for reply in replies:
        assert len(reply.data) in (asked[reply.cookie], 0)
        assert reply.error or len(reply.data) == asked[reply.cookie]
        assert set(reply.extents) <= {*client.offer.contexts.values()}
    assert len({reply.cookie for reply in replies}) == len(replies), "one answer to a request"
    if client.ready:
        assert client.offer.maximum > 0
    assert set(client.offer.contexts) <= {CONTEXT}
