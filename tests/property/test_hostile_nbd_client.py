# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whatever an NBD client says is answered, waited on, or refused: what is given out can be carried out."""

from __future__ import annotations

import struct

from hypothesis import given, settings

from everywhen.nbd import protocol as p
from everywhen.nbd.exports import Export, FixedExports
from everywhen.nbd.negotiation import Phase
from everywhen.nbd.server import Request, ServerSession
from tests.long_forms import SOAK
from tests.message_mutations import Mutation, mutated, mutations

MANY = settings(max_examples=20000 if SOAK else 1000)
SIZE = 1 << 20
WRITABLE = p.SEND_FLUSH | p.SEND_FUA | p.SEND_TRIM | p.SEND_WRITE_ZEROES
EXPORTS = FixedExports({"disk": Export(SIZE, WRITABLE, maximum=1 << 16), "fixed": Export(SIZE, p.READ_ONLY)})
NAME = struct.pack(">I", 4) + b"disk"
CONTEXT = struct.pack(">II", 1, len(p.ALLOCATION)) + p.ALLOCATION.encode()


def option(number: int, data: bytes = b"") -> bytes:
    return p.OPTION.pack(p.OPTION_MAGIC, number, len(data)) + data


def request(command: int, cookie: int, offset: int, length: int, data: bytes = b"") -> bytes:
    return p.REQUEST.pack(p.REQUEST_MAGIC, 0, command, cookie, offset, length) + data


MESSAGES = [
    p.CLIENT_FLAGS.pack(p.FIXED_NEWSTYLE | p.NO_ZEROES),
    option(p.OPT_LIST),
    option(p.OPT_STRUCTURED_REPLY),
    option(p.OPT_SET_META_CONTEXT, NAME + CONTEXT),
    option(p.OPT_INFO, NAME + struct.pack(">HH", 1, p.INFO_BLOCK_SIZE)),
    option(p.OPT_GO, NAME + bytes(2)),
    request(p.CMD_READ, 1, 100, 100),
    request(p.CMD_WRITE, 2, SIZE - 60, 60, bytes(range(60))),
    request(p.CMD_BLOCK_STATUS, 3, 0, SIZE),
    request(p.CMD_FLUSH, 4, 0, 0),
    request(p.CMD_WRITE_ZEROES, 5, 0, SIZE),
    request(p.CMD_TRIM, 6, 0, SIZE),
    request(p.CMD_DISC, 7, 0, 0),
]


def heard(messages: list[bytes]) -> tuple[ServerSession, list[Request]]:
    session, requests = ServerSession(EXPORTS, structured=True), list[Request]()
    for message in messages:
        if session.phase is Phase.ENDED:
            break
        requests += session.receive(message)
        session.take_output()
    return session, requests


def test_the_recorded_client_is_understood() -> None:
    session, requests = heard(MESSAGES)
    assert session.phase is Phase.ENDED
    assert [one.cookie for one in requests] == [1, 2, 3, 4, 5, 6]


@MANY
@given(mutations(len(MESSAGES)))
def test_any_client(changes: list[Mutation]) -> None:
    try:
        session, requests = heard(mutated(MESSAGES, changes))
    except p.ProtocolError:
        return
    writable = not session.export.flags & p.READ_ONLY
    for one in requests:
        assert one.offset + one.length <= session.export.size
        assert len(one.data) == (one.length if one.command == p.CMD_WRITE else 0)
        assert one.command in (p.CMD_READ, p.CMD_BLOCK_STATUS) or (writable and one.command != p.CMD_DISC)
        assert one.length <= session.export.maximum or one.command not in (p.CMD_READ, p.CMD_WRITE)
        assert session.context is not None or one.command != p.CMD_BLOCK_STATUS
