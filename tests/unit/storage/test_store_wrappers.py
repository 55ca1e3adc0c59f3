# SPDX-License-Identifier: AGPL-3.0-or-later
"""The wrappers and doubles: that they do what a test that uses them relies on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from everywhen.storage.base import (
    AlreadyExists,
    Buffer,
    ObjectInfo,
    ObjectNotFound,
    ObjectStore,
    OutOfSpace,
    Space,
    StorageError,
    Traits,
    Unavailable,
)
from everywhen.storage.delayed import DelayedStore
from everywhen.storage.faulty import Fault, FaultyStore, Operation, flip_bit, truncate
from everywhen.storage.forwarding import Kind
from everywhen.storage.memory import MemoryStore
from everywhen.storage.metered import MeteredStore
from everywhen.storage.posix import PosixStore
from everywhen.storage.probe import probe_traits
from everywhen.storage.recording import Delete, Put, RecordingStore, leave_torn, replay


def contents(store: ObjectStore) -> dict[str, bytes]:
    return {found.name: store.get(found.name) for found in store.list()}


def test_memory_has_a_capacity_that_deletions_and_replacements_give_back() -> None:
    store = MemoryStore(capacity=10)
    store.put("a", [b"12345", b"678"])
    assert store.space() == Space(total=10, free=2)
    with pytest.raises(OutOfSpace):
        store.put("b", [b"123"])
    with pytest.raises(OutOfSpace):
        store.put("a", [b"x" * 11])
    assert contents(store) == {"a": b"12345678"}
    store.put("a", [b"1234567890"])
    store.delete("a")
    store.delete("a")
    assert store.space() == Space(total=10, free=10)


def test_memory_goes_back_to_a_snapshot() -> None:
    store = MemoryStore(capacity=10)
    store.put("a", [b"first"])
    snapshot = store.snapshot()
    store.put("a", [b"second"])
    store.put("b", [b"x"])
    store.restore(snapshot)
    assert contents(store) == {"a": b"first"}
    assert store.space() == Space(total=10, free=5)
    store.put("b", [b"x"])
    assert "b" not in snapshot


def test_memory_dates_by_its_clock_or_counts() -> None:
    assert MemoryStore().space() is None
    counting, dated = MemoryStore(), MemoryStore(clock_ns=lambda: 77)
    for store in (counting, dated):
        store.put("a", [b"xy"])
        store.put("b", [b""])
    assert list(counting.list()) == [ObjectInfo("a", 2, 1), ObjectInfo("b", 0, 2)]
    assert list(dated.list()) == [ObjectInfo("a", 2, 77), ObjectInfo("b", 0, 77)]


def test_memory_does_not_change_with_the_buffer_it_was_given() -> None:
    store, buffer = MemoryStore(), bytearray(b"before")
    store.put("a", [buffer])
    buffer[:] = b"after!"
    assert store.get("a") == b"before"


@pytest.mark.parametrize("done", [False, True])
def test_the_nth_put_fails_before_or_after_it_took_effect(done: bool) -> None:
    store = FaultyStore(MemoryStore())
    store.add(Fault("put", number=2, prefix="packs/", error=Unavailable, done=done))
    store.put("packs/1", [b"1"])
    store.put("vms/1", [b"1"])
    with pytest.raises(Unavailable, match="injected") as caught:
        store.put("packs/2", [b"2"])
    assert caught.value.name == "packs/2"
    store.put("packs/3", [b"3"])
    expected = {"packs/1", "vms/1", "packs/3"} | ({"packs/2"} if done else set())
    assert set(contents(store)) == expected


def test_a_lasting_fault_lasts_until_it_is_healed() -> None:
    store = FaultyStore(MemoryStore())
    store.add(Fault("put", number=2, error=OutOfSpace, lasting=True))
    store.put("a", [b""])
    for _ in range(3):
        with pytest.raises(OutOfSpace):
            store.put("b", [b""])
    store.heal()
    store.put("b", [b""])


def test_any_operation_can_fail() -> None:
    store = FaultyStore(MemoryStore())
    store.put("a", [b"x"])
    asked: dict[Kind, Callable[[], object]] = {
        "get": lambda: store.get("a"),
        "get_range": lambda: store.get_range("a", 0, 1),
        "size": lambda: store.size("a"),
        "list": lambda: store.list(),
        "space": lambda: store.space(),
        "delete": lambda: store.delete("a"),
    }
    for kind, ask in asked.items():
        for done in (False, True):
            store.heal()
            store.add(Fault(kind, error=Unavailable, done=done))
            with pytest.raises(Unavailable):
                ask()
    assert contents(store) == {}


def test_what_is_read_can_be_damaged() -> None:
    store = FaultyStore(MemoryStore())
    store.put("a", [b"\x00\x00\x00"])
    store.add(Fault("get", change=flip_bit(9)))
    store.add(Fault("get_range", number=2, change=truncate(1)))
    assert [store.get("a"), store.get("a")] == [b"\x00\x02\x00", b"\x00\x00\x00"]
    assert [store.get_range("a", 0, 2), store.get_range("a", 0, 2)] == [b"\x00\x00", b"\x00"]
    assert flip_bit(25)(b"\x00\x00\x00") == b"\x02\x00\x00"
    assert flip_bit(3)(b"") == b""


def test_calls_before_and_after_may_look_and_interfere() -> None:
    inner = MemoryStore()
    store = FaultyStore(inner)
    seen: list[tuple[str, Operation, bool]] = []
    store.before = lambda operation: seen.append(("before", operation, "a" in inner.snapshot()))
    store.after = lambda operation: seen.append(("after", operation, "a" in inner.snapshot()))
    store.put("a", [b""])
    assert seen == [("before", Operation("put", "a", 1), False), ("after", Operation("put", "a", 1), True)]
    store.before = lambda operation: inner.put("b", [b"rival"])
    with pytest.raises(AlreadyExists):
        store.put("b", [b"mine"], if_absent=True)


def test_every_prefix_of_a_recording_can_be_made_again(tmp_path: Path) -> None:
    store = RecordingStore(MemoryStore())
    states = [contents(store)]
    store.put("a", [b"1", b"2"])
    states.append(contents(store))
    store.put("b", [b"3"], if_absent=True)
    states.append(contents(store))
    with pytest.raises(AlreadyExists):
        store.put("b", [b"4"], if_absent=True)
    store.put("a", [b"5"])
    states.append(contents(store))
    store.delete("b")
    states.append(contents(store))
    assert store.changes == [Put("a", b"12", False), Put("b", b"3", True), Put("a", b"5", False), Delete("b")]
    for length, state in enumerate(states):
        for again in (MemoryStore(), PosixStore(tmp_path / str(length))):
            replay(store.changes[:length], again)
            assert contents(again) == state


def test_a_torn_put_leaves_a_temporary_file_and_no_object(tmp_path: Path) -> None:
    store = PosixStore(tmp_path)
    put = Put("packs/ab/x", b"content", True)
    for length in (0, 3, 7):
        leave_torn(put, tmp_path, length=length)
    assert contents(store) == {}
    assert sorted(path.read_bytes() for path in tmp_path.rglob(".tmp-*")) == [b"", b"con", b"content"]
    replay([put], store)
    assert contents(store) == {"packs/ab/x": b"content"}
    assert store.sweep_temporaries(["packs"], now_ns=2**63, older_than_ns=0) == 3


def test_a_recording_is_in_the_order_of_effect() -> None:
    store = RecordingStore(MemoryStore())

    def write(thread: int) -> None:
        for _ in range(50):
            store.put("a", [bytes([thread])])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = store.changes[-1]
    assert isinstance(last, Put)
    assert last.content == store.get("a")
    assert len(store.changes) == 200


class Line:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_delayed_store_takes_a_round_trip_and_the_time_of_the_bytes() -> None:
    line = Line()
    inner = MemoryStore()
    store = DelayedStore(inner, latency_s=0.03, bytes_per_s=1000, sleep=line.sleep, clock=lambda: line.now)
    assert store.traits == Traits(put_if_absent=True, consistent_list=True, remote=True)
    took = []
    for ask in (
        lambda: store.put("a", [b"x" * 300, b"y" * 200]),
        lambda: store.get("a"),
        lambda: store.get_range("a", 450, 100),
        lambda: store.size("a"),
        lambda: list(store.list()),
        lambda: store.delete("a"),
    ):
        before = line.now
        ask()
        took.append(round(line.now - before, 6))
    assert took == [0.53, 0.53, 0.08, 0.03, 0.03, 0.03]


def test_two_transfers_share_the_line() -> None:
    line = Line()
    inner = MemoryStore()
    inner.put("a", [b"x" * 1000])
    waits: list[float] = []
    store = DelayedStore(inner, latency_s=0, bytes_per_s=1000, sleep=waits.append, clock=lambda: line.now)
    store.get("a")
    store.get("a")
    assert [wait for wait in waits if wait] == [1.0, 2.0]


def test_a_metered_store_counts() -> None:
    store = MeteredStore(MemoryStore(capacity=100))
    store.put("a", [b"12", b"345"])
    store.get("a")
    store.get_range("a", 3, 10)
    store.size("a")
    list(store.list())
    store.space()
    store.delete("a")
    with pytest.raises(ObjectNotFound):
        store.get("a")
    with pytest.raises(OutOfSpace):
        store.put("a", [b"x" * 101])
    assert store.operations == {"put": 2, "get": 2, "get_range": 1, "size": 1, "list": 1, "space": 1, "delete": 1}
    assert (store.bytes_read, store.bytes_written) == (7, 5)


class Careless(MemoryStore):
    """Ignores the condition of a put."""

    def put(self, name: str, parts: Sequence[Buffer], *, if_absent: bool = False) -> None:
        super().put(name, parts)


class Treacherous(MemoryStore):
    """Says that the object is there, but replaces it."""

    def put(self, name: str, parts: Sequence[Buffer], *, if_absent: bool = False) -> None:
        there = name in self.snapshot()
        super().put(name, parts)
        if if_absent and there:
            raise AlreadyExists(name, "replaced all the same")


class Forgetful(MemoryStore):
    """Lists what was there before the last change."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Sequence[ObjectInfo] = ()

    def put(self, name: str, parts: Sequence[Buffer], *, if_absent: bool = False) -> None:
        self.before = tuple(super().list())
        super().put(name, parts, if_absent=if_absent)

    def delete(self, name: str) -> None:
        self.before = tuple(super().list())
        super().delete(name)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return iter(self.before)


def test_the_probe_sees_what_a_store_does_not_keep() -> None:
    assert probe_traits(MemoryStore(), "probe/x") == Traits(put_if_absent=True, consistent_list=True, remote=False)
    careless, forgetful = Careless(), Forgetful()
    assert not probe_traits(careless, "probe/x").put_if_absent
    assert not probe_traits(Treacherous(), "probe/x").put_if_absent
    assert not probe_traits(forgetful, "probe/x").consistent_list
    assert contents(careless) == {}


def test_the_probe_cleans_up_and_reports_a_store_that_cannot_be_used() -> None:
    inner = MemoryStore()
    store = FaultyStore(inner)
    store.add(Fault("list", error=StorageError))
    with pytest.raises(StorageError, match="injected"):
        probe_traits(store, "probe/x")
    assert inner.snapshot() == {}
