# SPDX-License-Identifier: AGPL-3.0-or-later
"""Damaged and forged bytes are errors, never data (I-3, I-8): every decoder of packs, nodes, points and documents.

Truncations and flips of real objects; random bytes; objects of one kind that changed places. What is decoded must be what
was stored, or a FormatError, without taking much memory for what a damaged length claims.
"""

from __future__ import annotations

import functools
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from everywhen.formats.document import Envelope
from everywhen.formats.errors import FormatError
from everywhen.formats.fields import canonical_json, parse_json
from everywhen.formats.ids import PackId, PointId, pack_object, pack_of_object
from everywhen.formats.node import decode_node, encode_node
from everywhen.formats.pack import PackFooter, PackHeader, PackIndex, Record, decode_body, decode_frame
from everywhen.formats.point import decode_point
from everywhen.repository.errors import Damaged
from everywhen.repository.keys.keys import Unlocked
from everywhen.repository.repository import Repository
from everywhen.repository.twins import twin_of
from everywhen.storage.memory import MemoryStore, StoredObject
from tests.laboratory import SparseDisk, World, block, touched
from tests.long_forms import SOAK

MANY = settings(max_examples=5000 if SOAK else 300)
FEWER = settings(max_examples=2000 if SOAK else 120)
MOST = 64 << 20
"""Bytes that decoding anything here may take at a time: an index of 256 MiB must not be believed, but is allowed for."""


@functools.cache
def sample(encrypted: bool) -> tuple[World, Unlocked, dict[str, StoredObject]]:
    """A repository with two points, deltas, a hold's worth of documents; its caches are not used again."""
    world = World(Path(tempfile.mkdtemp()))
    store = MemoryStore()
    unlocked = world.create(store, encrypted=encrypted)
    with world.open(store, unlocked) as repository:
        disk = SparseDisk(20 << 20, {number: block(number) for number in range(6)} | {300: block("far")})
        first = world.back_up(repository, {"vda": disk}, {"vm.xml": b"<vm/>"})
        disk.blocks[3] = touched(disk.blocks[3], 1)
        world.back_up(repository, {"vda": disk}, {"vm.xml": b"<vm/>"}, parent=first)
        world.drop(repository, first)
        world.drop(repository, first)
    return world, unlocked, store.snapshot()


def opened(encrypted: bool) -> tuple[Repository, MemoryStore]:
    world, unlocked, objects = sample(encrypted)
    store = MemoryStore()
    store.restore(objects)
    return world.open(store, unlocked, cache="decoders" + "ce"[encrypted]), store


@functools.cache
def names(encrypted: bool, prefix: str) -> list[str]:
    return sorted(name for name in sample(encrypted)[2] if name.startswith(prefix))


def damaged(content: bytes, how: str, at: int, bit: int) -> bytes:
    at %= len(content)
    if how == "cut":
        return content[:at]
    if how == "insert":
        return content[:at] + bytes([bit]) + content[at:]
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


HOW = st.sampled_from(["flip", "flip", "cut", "insert"])
AT = st.one_of(st.integers(0, 400), st.integers(0, 1 << 30))
BIT = st.integers(0, 7)


def frugal(decode: Callable[[], object]) -> object:
    """What `decode` gives, or None for a FormatError; fails when it takes much memory."""
    tracemalloc.start()
    try:
        return decode()
    except FormatError:
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MOST, f"{peak >> 20} MiB"


def in_order(records: object) -> list[object]:
    assert isinstance(records, list)
    return [(one.name, one.form, one.bases, bytes(one.payload)) for one in records if isinstance(one, Record)]


@pytest.mark.parametrize("encrypted", [False, True])
def test_damaged_packs(encrypted: bool) -> None:
    """By the index, by a scan and by a rebuilt index: what comes out was in there, at that place."""
    repository, store = opened(encrypted)
    with repository:

        @MANY
        @given(st.sampled_from(names(encrypted, "packs/")), HOW, AT, BIT)
        def check(name: str, how: str, at: int, bit: int) -> None:
            pack = pack_of_object(name)
            assert pack is not None
            whole = sample(encrypted)[2][name].content
            store.put(name, [whole])
            before = {at: record for at, record in repository.packs.scan(pack) if isinstance(record, Record)}
            _, index = repository.packs.index(pack, len(whole))
            content = damaged(whole, how, at, bit)
            if how == "flip":
                # Beyond a flip nothing moves, so all records but one are still there.
                assert content != whole
            store.put(name, [content])
            found = frugal(lambda: repository.packs.index(pack, store.size(name))[1])
            assert found is None or (isinstance(found, PackIndex) and found.encode() == index.encode())
            scanned = frugal(lambda: list(repository.packs.scan(pack)))
            good = [record for _, record in scanned if isinstance(record, Record)] if isinstance(scanned, list) else []
            assert all(one in in_order(list(before.values())) for one in in_order(good))
            if how == "flip" and isinstance(scanned, list):
                assert len(good) >= len(before) - 1
            rebuilt = frugal(lambda: repository.packs.rebuild_index(pack)[1])
            if isinstance(rebuilt, PackIndex):
                stored = {row.tobytes() for row in index.names}
                assert {row.tobytes() for row in rebuilt.names} <= stored
                for start, length in zip(rebuilt.offsets.tolist(), rebuilt.lengths.tolist(), strict=True):
                    repository.packs.open(pack).open_record(store.get_range(name, start, length + 16))
            store.put(name, [whole])

        check()


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("prefix", ["points/", "drops/"])
def test_damaged_documents(encrypted: bool, prefix: str) -> None:
    repository, _ = opened(encrypted)
    with repository:

        @FEWER
        @given(st.sampled_from(names(encrypted, prefix)), HOW, AT, BIT)
        def check(name: str, how: str, at: int, bit: int) -> None:
            whole = sample(encrypted)[2][name].content
            right = repository.documents.open(name, whole)
            found = frugal(lambda: repository.documents.open(name, damaged(whole, how, at, bit)))
            # Reserved bytes of the envelope, and the key generation where there is no key, mean nothing; all else counts.
            idle = range(9, 12 if encrypted else 16)
            assert found is None or (found == right and how == "flip" and at % len(whole) in idle)

        check()


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("prefix", ["packs/", "points/", "drops/"])
def test_objects_that_changed_places(encrypted: bool, prefix: str) -> None:
    """Somebody who may write to the store, but has no key, gives one object the name of another of its kind."""
    repository, store = opened(encrypted)
    _, _, objects = sample(encrypted)
    first, second = names(encrypted, prefix)[:2]
    with repository:
        for name, other in ((first, second), (second, first)):
            store.put(name, [objects[other].content])
            if twin_of(name) in objects:
                store.put(twin_of(name), [objects[other].content])
        if prefix == "packs/":
            pack = PackId(bytes.fromhex(first.rpartition("/")[2]))
            for reading in (lambda: repository.packs.open(pack), lambda: repository.packs.index(pack, store.size(first))):
                with pytest.raises(FormatError):
                    reading()
            with pytest.raises(FormatError):
                repository.packs.rebuild_index(pack)
            repository.refresh()
            assert pack in repository.unreadable_packs
            assert pack_object(pack) == first
        else:
            with pytest.raises(FormatError):
                repository.documents.get(first)
        if prefix == "points/":
            points, stones, unreadable = repository.points.list()
            assert (points, stones, len(unreadable)) == ([], [], 2)
            with pytest.raises(Damaged):
                repository.points.get(PointId(first.removeprefix(prefix)))


@MANY
@given(st.binary(max_size=300))
@example(b"")
def test_any_bytes(content: bytes) -> None:
    """Nothing but FormatError comes out of bytes that are anything."""
    decoders: list[Callable[[], object]] = [
        lambda: PackHeader.decode(content),
        lambda: PackFooter.decode(content),
        lambda: PackIndex.decode(content),
        lambda: decode_frame(content),
        lambda: decode_body(content),
        lambda: decode_node(content, 0),
        lambda: Envelope.decode(content),
        lambda: parse_json("this", content),
    ]
    for decode in decoders:
        frugal(decode)


@FEWER
@given(AT, HOW, BIT, st.integers(0, 3))
def test_damaged_nodes(at: int, how: str, bit: int, level: int) -> None:
    entries = np.frombuffer(bytes(range(256)) * 32, np.uint8).reshape(256, 32)
    whole = encode_node(level, entries)
    assert (decode_node(whole, level) == entries).all()
    found = frugal(lambda: decode_node(damaged(whole, how, at, bit), level))
    # A node is a chunk: its content is checked by name or tag. Here only its form counts.
    assert found is None or (how == "flip" and at % len(whole) >= 8)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@MANY
@given(st.data())
def test_points_with_other_fields(data: st.DataObject) -> None:
    """In a repository without encryption anybody can write a document that is well-formed but for its fields."""
    repository, _ = opened(False)
    with repository:
        point = repository.points.list()[0][1]
    value = point.to_json()
    place = value
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        inner = place[key]
        if isinstance(inner, dict) and inner and data.draw(st.booleans()):
            place = inner
            continue
        break
    if data.draw(st.booleans()):
        place[key] = data.draw(json_values)
    else:
        del place[key]
    try:
        decoded = decode_point(value)
    except FormatError:
        return
    assert decode_point(parse_json("it", canonical_json(decoded.to_json()))) == decoded


@pytest.mark.parametrize("seconds", [10**400, float("nan"), float("inf"), -1], ids=["huge", "nan", "inf", "negative"])
def test_impossible_durations(seconds: float) -> None:
    repository, _ = opened(False)
    with repository:
        value = repository.points.list()[0][0].to_json()
    with pytest.raises(FormatError):
        decode_point(value | {"seconds": seconds})
