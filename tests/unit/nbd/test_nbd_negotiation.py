# SPDX-License-Identifier: AGPL-3.0-or-later
"""The handshake byte by byte: what each option is answered with, and what a rude client is told."""

from __future__ import annotations

import struct

import pytest

from everywhen.nbd import protocol as p
from everywhen.nbd.exports import Export, FixedExports, NoExport
from everywhen.nbd.negotiation import Phase
from everywhen.nbd.server import ServerSession

FLAGS = p.READ_ONLY | p.CAN_MULTI_CONN
EXPORTS = FixedExports({"vm1/vda": Export(1 << 40, FLAGS, preferred=65536, description="vm1 at noon"), "é": Export(512, 0)})
ALLOCATION = p.ALLOCATION.encode()


def option(number: int, data: bytes = b"") -> bytes:
    return p.OPTION.pack(p.OPTION_MAGIC, number, len(data)) + data


def counted(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def about(name: bytes, *wanted: int) -> bytes:
    return counted(name) + struct.pack(f">H{len(wanted)}H", len(wanted), *wanted)


def queries(name: bytes, *asked: bytes) -> bytes:
    return counted(name) + struct.pack(">I", len(asked)) + b"".join(map(counted, asked))


def answers(session: ServerSession) -> list[tuple[int, int, bytes]]:
    """(option, type, data) of what it says."""
    output, found = session.take_output(), []
    while output:
        magic, number, kind, length = p.OPTION_REPLY.unpack_from(output)
        assert magic == p.OPTION_REPLY_MAGIC
        end = p.OPTION_REPLY.size + length
        found.append((number, kind, output[p.OPTION_REPLY.size : end]))
        output = output[end:]
    return found


def asked(*options: bytes, tls: bool = False) -> tuple[ServerSession, list[tuple[int, int, bytes]]]:
    """A session to which a client has said this, and its answers."""
    session = ServerSession(EXPORTS, structured=True, tls=tls)
    assert session.take_output() == b"NBDMAGICIHAVEOPT\0\3"
    assert session.receive(struct.pack(">I", 3) + b"".join(options)) == []
    return session, answers(session)


STRUCTURED = option(p.OPT_STRUCTURED_REPLY)


def test_names_are_listed() -> None:
    assert asked(option(p.OPT_LIST))[1] == [
        (p.OPT_LIST, p.REP_SERVER, counted(b"vm1/vda")),
        (p.OPT_LIST, p.REP_SERVER, counted("é".encode())),
        (p.OPT_LIST, p.REP_ACK, b""),
    ]


def test_who_asks_about_an_export_is_told_all_and_the_description_on_request() -> None:
    size = struct.pack(">HQH", 0, 1 << 40, FLAGS | p.HAS_FLAGS)
    blocks = struct.pack(">HIII", 3, 1, 65536, 32 << 20)
    session, told = asked(option(p.OPT_INFO, about(b"vm1/vda")), option(p.OPT_INFO, about(b"vm1/vda", 3, 2)))
    told_plainly = [(p.OPT_INFO, p.REP_INFO, size), (p.OPT_INFO, p.REP_INFO, blocks), (p.OPT_INFO, p.REP_ACK, b"")]
    assert told == [*told_plainly, told_plainly[0], (p.OPT_INFO, p.REP_INFO, b"\0\2vm1 at noon"), *told_plainly[1:]]
    assert session.phase is Phase.OPTIONS


def test_structured_replies_allow_df() -> None:
    session, told = asked(STRUCTURED, option(p.OPT_GO, about("é".encode())))
    assert told[:2] == [
        (p.OPT_STRUCTURED_REPLY, p.REP_ACK, b""),
        (p.OPT_GO, p.REP_INFO, struct.pack(">HQH", 0, 512, p.HAS_FLAGS | p.SEND_DF)),
    ]
    assert (session.phase, session.name, session.context) == (Phase.TRANSMISSION, "é", None)


@pytest.mark.parametrize("number", [p.OPT_LIST_META_CONTEXT, p.OPT_SET_META_CONTEXT])
@pytest.mark.parametrize(
    ("wanted", "listed", "chosen"),
    [
        ([], True, False),
        ([b"base:"], True, False),
        ([ALLOCATION], True, True),
        ([b"qemu:dirty-bitmap:x", ALLOCATION, ALLOCATION], True, True),
        ([b"qemu:", b"base:allocation "], False, False),
    ],
)
def test_contexts(number: int, wanted: list[bytes], *, listed: bool, chosen: bool) -> None:
    session, told = asked(STRUCTURED, option(number, queries(b"vm1/vda", *wanted)), option(p.OPT_GO, about(b"vm1/vda")))
    has = listed if number == p.OPT_LIST_META_CONTEXT else chosen
    expected = [(number, p.REP_META_CONTEXT, b"\0\0\0\1" + ALLOCATION)] if has else []
    assert told[1 : 2 + len(expected)] == [*expected, (number, p.REP_ACK, b"")]
    assert (session.context is not None) == (chosen and number == p.OPT_SET_META_CONTEXT)


def test_contexts_are_for_the_export_for_which_they_were_set_last() -> None:
    chosen = option(p.OPT_SET_META_CONTEXT, queries(b"vm1/vda", ALLOCATION))
    other = option(p.OPT_SET_META_CONTEXT, queries("é".encode(), ALLOCATION))
    none = option(p.OPT_SET_META_CONTEXT, queries(b"gone", ALLOCATION))
    go = option(p.OPT_GO, about(b"vm1/vda"))
    assert asked(STRUCTURED, chosen, go)[0].context == 1
    for later in (other, none):
        assert asked(STRUCTURED, chosen, later, go)[0].context is None
    session, _ = asked(STRUCTURED, chosen)
    session.receive(option(p.OPT_EXPORT_NAME, b"vm1/vda"))
    assert session.context == 1


@pytest.mark.parametrize(
    ("number", "data"),
    [
        (p.OPT_LIST, b"x"),
        (p.OPT_STRUCTURED_REPLY, b"x"),
        (p.OPT_INFO, b""),
        (p.OPT_INFO, counted(b"vm1/vda")),
        (p.OPT_GO, counted(b"vm1/vda") + b"\0\2\0\3"),
        (p.OPT_GO, struct.pack(">I", 1 << 31) + b"vm1/vda\0\0"),
        (p.OPT_GO, about(b"\xff")),
        (p.OPT_GO, about(b"a\0b")),
        (p.OPT_GO, about(b"x" * 4097)),
        (p.OPT_SET_META_CONTEXT, queries(b"vm1/vda", b"x") + b"x"),
        (p.OPT_SET_META_CONTEXT, queries(b"vm1/vda", b"x")[:-1]),
        (p.OPT_SET_META_CONTEXT, counted(b"vm1/vda") + struct.pack(">I", 1 << 31)),
        (p.OPT_LIST_META_CONTEXT, counted(b"vm1/vda")),
        (p.OPT_LIST_META_CONTEXT, b"\0\0"),
    ],
)
def test_what_makes_no_sense_is_refused_and_the_client_may_go_on(number: int, data: bytes) -> None:
    session, told = asked(STRUCTURED, option(number, data), option(p.OPT_GO, about(b"vm1/vda")))
    assert [one[:2] for one in told[1:]][:2] == [(number, p.REP_ERR_INVALID), (p.OPT_GO, p.REP_INFO)]
    assert told[1][2]
    assert session.phase is Phase.TRANSMISSION


def test_contexts_need_structured_replies() -> None:
    for number in (p.OPT_LIST_META_CONTEXT, p.OPT_SET_META_CONTEXT):
        session, told = asked(option(number, queries(b"vm1/vda", ALLOCATION)), option(p.OPT_GO, about(b"vm1/vda")))
        assert told[0][:2] == (number, p.REP_ERR_INVALID)
        assert session.context is None


@pytest.mark.parametrize("number", [p.OPT_INFO, p.OPT_GO, p.OPT_LIST_META_CONTEXT, p.OPT_SET_META_CONTEXT])
def test_who_asks_for_what_is_not_there_is_told_why(number: int) -> None:
    data = about(b"vm1/vdb") if number in (p.OPT_INFO, p.OPT_GO) else queries(b"vm1/vdb")
    session, told = asked(STRUCTURED, option(number, data))
    assert told[1:] == [(number, p.REP_ERR_UNKNOWN, b'no export "vm1/vdb"')]
    assert session.phase is Phase.OPTIONS


def test_a_reason_is_as_long_as_the_protocol_allows() -> None:
    class Nothing:
        def names(self) -> list[str]:
            raise NoExport("no\0 list")

        def describe(self, name: str) -> Export:
            raise NoExport("é" * 4000)

    session = ServerSession(Nothing())
    session.take_output()
    session.receive(struct.pack(">I", 3) + option(p.OPT_LIST) + option(p.OPT_GO, about(b"")))
    assert answers(session) == [
        (p.OPT_LIST, p.REP_ERR_POLICY, b"no  list"),
        (p.OPT_GO, p.REP_ERR_UNKNOWN, "é".encode() * 2048),
    ]


def test_unknown_options_are_refused() -> None:
    told = asked(option(77, b"abc"), option(p.OPT_STARTTLS), option(p.OPT_ABORT))
    assert told[1] == [(77, p.REP_ERR_UNSUP, b""), (p.OPT_STARTTLS, p.REP_ERR_UNSUP, b""), (p.OPT_ABORT, p.REP_ACK, b"")]
    assert told[0].phase is Phase.ENDED


@pytest.mark.parametrize(
    "said",
    [
        struct.pack(">I", 4),
        struct.pack(">I", 2),
        struct.pack(">I", 3) + b"IHAVEOPS" + bytes(8),
        struct.pack(">I", 3) + p.OPTION.pack(p.OPTION_MAGIC, p.OPT_GO, (64 << 10) + 1),
        struct.pack(">I", 3) + option(p.OPT_EXPORT_NAME, b"none"),
        struct.pack(">I", 3) + option(p.OPT_EXPORT_NAME, b"\xff"),
    ],
    ids=["unknown flag", "old client", "magic", "too long", "no such export", "no text"],
)
def test_who_cannot_be_answered_is_hung_up_on(said: bytes) -> None:
    with pytest.raises(p.ProtocolError):
        ServerSession(EXPORTS, structured=True).receive(said)


ALL = [
    option(p.OPT_LIST),
    option(p.OPT_INFO, about(b"vm1/vda")),
    option(p.OPT_GO, about(b"vm1/vda")),
    STRUCTURED,
    option(p.OPT_SET_META_CONTEXT, queries(b"vm1/vda")),
    option(77),
]


def test_with_tls_nothing_is_answered_without() -> None:
    _, told = asked(*ALL, option(p.OPT_ABORT), tls=True)
    assert [kind for _, kind, _ in told] == [p.REP_ERR_TLS_REQD] * len(ALL) + [p.REP_ACK]
    assert b"vm1" not in b"".join(data for _, _, data in told)
    with pytest.raises(p.ProtocolError, match="without TLS"):
        asked(option(p.OPT_EXPORT_NAME, b"vm1/vda"), tls=True)


def test_tls_begins_when_it_is_asked_for_and_once() -> None:
    session, told = asked(option(p.OPT_STARTTLS, b"x"), option(p.OPT_STARTTLS), tls=True)
    assert [kind for _, kind, _ in told] == [p.REP_ERR_INVALID, p.REP_ACK]
    assert not session.name
    session.encrypted()
    session.receive(option(p.OPT_STARTTLS) + STRUCTURED + option(p.OPT_GO, about(b"vm1/vda")))
    assert [kind for _, kind, _ in answers(session)] == [p.REP_ERR_INVALID, p.REP_ACK, p.REP_INFO, p.REP_INFO, p.REP_ACK]
    assert session.receive(p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_READ, 1, 0, 512))


def test_nothing_slips_in_front_of_tls() -> None:
    """What comes behind the request in the clear may be somebody else's who is between us and the client."""
    with pytest.raises(p.ProtocolError, match="in the clear"):
        asked(option(p.OPT_STARTTLS), option(p.OPT_LIST), tls=True)
    session, _ = asked(option(p.OPT_STARTTLS), tls=True)
    session.receive(b"")
    with pytest.raises(p.ProtocolError):
        session.receive(option(p.OPT_LIST))
