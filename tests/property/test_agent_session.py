# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whatever a guest sends as its agent: answers, Corrupt, or nothing; and what was sent before the conversation is nobody's."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from everywhen.capture.agent_session import LONGEST_LINE, AgentAnswer, AgentSession, command
from everywhen.formats.errors import Corrupt

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
STALE = st.lists(
    st.binary(max_size=40)
    | st.integers(0, 99).map(lambda number: b"\xff" + _line({"return": number}))
    | VALUES.map(lambda value: _line({"return": value})),
    max_size=6,
).map(b"".join)


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[begin:end] for begin, end in pairwise(places)]


@given(STALE, VALUES, st.lists(st.integers(0, 1 << 20), max_size=8))
@example(b"\x00\xff", None, [2])
def test_the_answer_is_found_whatever_was_there_before(stale: bytes, value: object, cuts: list[int]) -> None:
    session = AgentSession()
    session.sync(100)
    stream = stale + b"\xff" + _line({"return": 100}) + _line({"return": value})
    found = [answer for piece in _pieces(stream, cuts) for answer in session.receive(piece)]
    assert found == [AgentAnswer(value, None)]


@given(STALE, st.lists(st.integers(0, 1 << 20), max_size=8))
def test_nothing_is_an_answer_before_the_number_is(stale: bytes, cuts: list[int]) -> None:
    session = AgentSession()
    session.sync(100)
    assert [answer for piece in _pieces(stale, cuts) for answer in session.receive(piece)] == []
    assert not session.synced


@given(st.lists(st.binary(max_size=60)))
def test_any_bytes_are_an_answer_or_corrupt(pieces: list[bytes]) -> None:
    session = AgentSession()
    session.sync(7)
    session.receive(b"\xff" + _line({"return": 7}))
    try:
        for piece in pieces:
            for answer in session.receive(piece):
                assert answer.error is None or isinstance(answer.error, str)
    except Corrupt:
        pass


@given(st.text(), st.dictionaries(st.text(), VALUES, max_size=3))
def test_a_command_is_one_line(name: str, arguments: dict[str, object]) -> None:
    line = command(name, arguments)
    assert line.index(b"\n") == len(line) - 1
    assert b"\xff" not in line
    assert json.loads(line).get("arguments", {}) == arguments


def test_memory_is_bounded() -> None:
    session = AgentSession()
    session.sync(7)
    for _ in range(64):
        assert session.receive(bytes(LONGEST_LINE)) == []  # without a delimiter: nobody's
    for synced in (False, True):
        session.sync(8)
        session.receive(b"\xff" + (_line({"return": 8}) if synced else b""))
        session.receive(b"a" * LONGEST_LINE)
        with pytest.raises(Corrupt, match="a line of more than"):
            session.receive(b"a")


def test_answers_of_an_earlier_conversation_do_not_count() -> None:
    session = AgentSession()
    session.sync(1)
    session.receive(b"\xff" + _line({"return": 1}) + b'{"retu')
    session.sync(2)
    assert session.receive(b'rn": 5}\n\xff' + _line({"return": 1}) + b"\xff" + _line({"return": 2}) + _line({"return": 6})) == [
        AgentAnswer(6, None)
    ]
