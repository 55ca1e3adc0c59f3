# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is said of guests' files survives the way between processes; what cannot be true is Corrupt, whatever it is."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everywhen.formats.errors import Corrupt
from everywhen.guest import values
from everywhen.guest.errors import GuestDamaged, GuestLimit, GuestUnsupported, LinkUnusable, NoSuchPath, WrongKind
from everywhen.guest.messages import SIZES, Message, receive
from everywhen.guest.names import name_error
from everywhen.guest.tree import DriveLetters, Entry, Kind, Run, Span, Times, Unreadable

NAMES = st.one_of(
    st.binary(min_size=1, max_size=60).map(lambda name: name.decode("utf-8", "surrogateescape")),
    st.binary(min_size=2, max_size=60).map(lambda name: name[: len(name) & ~1].decode("utf-16-le", "surrogatepass")),
).filter(lambda name: name_error(name) is None)
"""As file systems give them: bytes that are no UTF-8, and halves of UTF-16 pairs."""
TIMES = st.none() | st.integers(-(1 << 80), 1 << 80)
NUMBERS = st.integers(0, (1 << 64) - 1)
ENTRIES = st.builds(
    Entry,
    name=NAMES,
    kind=st.sampled_from(Kind),
    number=NUMBERS | st.integers(-(1 << 64), -1),
    size=NUMBERS,
    times=st.builds(Times, TIMES, TIMES, TIMES, TIMES),
    mode=st.none() | st.integers(0, 0o7777),
    uid=st.none() | st.integers(0, 0xFFFFFFFF),
    gid=st.none() | st.integers(0, 0xFFFFFFFF),
    links=NUMBERS,
    allocated=st.none() | NUMBERS,
    target=st.none() | NAMES,
    device=st.none() | st.tuples(st.integers(0, 4095), st.integers(0, 1 << 20)),
    subvolume=NUMBERS,
)
ODD: list[object] = [
    None,
    True,
    -1,
    1 << 70,
    1.5,
    "x",
    "..",
    "a/b",
    "\ud800",
    [],
    [1],
    [[1, 2]],
    [1, 2, 3, 4],
    {},
    {"kind": "GuestLimit"},
]
JSON = st.sampled_from(ODD)


def over_the_wire(message: Message) -> Message:
    data = message.encode()
    at = 0

    def take(count: int) -> bytes:
        nonlocal at
        at += count
        return data[at - count : at]

    return receive(take)


@given(ENTRIES, st.binary(max_size=100))
def test_entries_come_back_as_they_were(entry: Entry, body: bytes) -> None:
    got = over_the_wire(Message({"entry": values.entry_json(entry)}, body))
    assert values.entry_of(got.head["entry"]) == entry
    assert got.body == body


@given(NAMES, st.sampled_from([WrongKind, LinkUnusable, GuestDamaged, GuestUnsupported, GuestLimit]))
def test_what_cannot_be_read_comes_back(name: str, kind: type[Exception]) -> None:
    got = over_the_wire(Message(values.listed_json(Unreadable(name, kind(f"{name} is bad")))))  # type: ignore[arg-type]
    found = values.listed_of(got.head)
    assert isinstance(found, Unreadable)
    assert (found.name, type(found.error), str(found.error)) == (name, kind, f"{name} is bad")


@given(NAMES, NAMES)
def test_paths_that_are_not_there_come_back(path: str, nearest: str) -> None:
    found = values.error_of(over_the_wire(Message(values.error_json(NoSuchPath(path, nearest)))).head)
    assert isinstance(found, NoSuchPath)
    assert (found.path, found.nearest) == (path, nearest)


@given(st.lists(st.tuples(st.integers(1, 1 << 40), st.booleans(), st.none() | st.tuples(NUMBERS, NUMBERS)), max_size=20))
def test_runs_come_back(lengths: list[tuple[int, bool, tuple[int, int] | None]]) -> None:
    runs, at = [], 0
    for length, zero, stored in lengths:
        runs.append(Run(at, length, zero, Span(*stored) if stored else None))
        at += length
    got = over_the_wire(Message({"runs": [values.run_json(run) for run in runs]}))
    assert values.runs_of(got.head, 0) == runs


FIELDS = ["name", "kind", "number", "size", "times", "error", "unreadable", "links", "target", "mode", "uid", "device"]


@given(st.dictionaries(st.sampled_from("ABCXYZ"), st.tuples(st.sampled_from(("vda", "b\xfc")), NAMES)), st.booleans())
def test_drive_letters_come_back(given_: dict[str, tuple[str, str]], whole: bool) -> None:
    letters = DriveLetters(given_, {f"volume{{{letter}}}": place for letter, place in given_.items()}, whole)
    assert values.letters_of(Message(values.letters_json(letters)).head) == letters


@given(letter=JSON, disk=JSON, whole=JSON)
def test_what_are_no_drive_letters_is_corrupt(letter: object, disk: object, whole: object) -> None:
    source = {"letters": [{"name": letter, "disk": disk, "volume": "p1"}], "names": [], "whole": whole}
    with pytest.raises(Corrupt):
        values.letters_of(source)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_what_is_no_entry_is_corrupt(source: dict[str, object]) -> None:
    for decode in (values.listed_of, values.entry_of, values.error_of, values.spans_of, values.streams_of):
        with contextlib.suppress(Corrupt):
            decode(source)
    with contextlib.suppress(Corrupt):
        values.attributes_of({"attributes": source}, b"")
    with contextlib.suppress(Corrupt):
        values.runs_of({"runs": [source]}, 0)


@given(ENTRIES, st.sampled_from(FIELDS), JSON)
def test_an_entry_with_anything_in_it_is_whole_or_corrupt(entry: Entry, field: str, value: object) -> None:
    with contextlib.suppress(Corrupt):
        found = values.entry_of({**values.entry_json(entry), field: value})
        assert name_error(found.name) is None
        assert found.size >= 0


@given(st.binary(max_size=40), st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF))
def test_bytes_that_are_no_message(data: bytes, head: int, body: int) -> None:
    stream = SIZES.pack(head, body) + data

    def take(count: int) -> bytes:
        nonlocal stream
        if count > len(stream):
            raise EOFError
        taken, stream = stream[:count], stream[count:]
        return taken

    with contextlib.suppress(Corrupt, EOFError):
        receive(take)
