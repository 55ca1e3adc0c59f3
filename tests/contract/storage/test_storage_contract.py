# SPDX-License-Identifier: AGPL-3.0-or-later
"""What every store must do (`everywhen.storage.base`), run against each of them: the fixture `store`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from everywhen.storage.base import AlreadyExists, Buffer, ObjectNotFound, ObjectStore
from everywhen.storage.probe import probe_traits

PACK = 32 << 20


def names(store: ObjectStore, prefix: str = "") -> list[str]:
    return sorted(found.name for found in store.list(prefix))


def together(work: Callable[[int], object], count: int) -> list[object]:
    """Run `work(0)` … `work(count - 1)` in threads that begin at the same instant."""
    barrier = threading.Barrier(count)

    def start(number: int) -> object:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(start, range(count)))


def test_an_object_comes_back_as_it_was_put(store: ObjectStore) -> None:
    content = bytes(range(256)) * 5
    parts: list[Buffer] = [content[:7], b"", bytearray(content[7:600]), memoryview(content)[600:]]
    store.put("packs/ab/abc.1_2-3", parts)
    assert store.get("packs/ab/abc.1_2-3") == content
    assert type(store.get("packs/ab/abc.1_2-3")) is bytes
    assert store.size("packs/ab/abc.1_2-3") == len(content)


@pytest.mark.parametrize("parts", [[], [b""], [b"", b""]], ids=["no part", "empty part", "empty parts"])
def test_an_object_may_be_empty(store: ObjectStore, parts: list[bytes]) -> None:
    store.put("empty", parts, if_absent=True)
    assert store.get("empty") == b""
    assert store.size("empty") == 0
    assert store.get_range("empty", 0, 10) == b""
    assert names(store) == ["empty"]
    with pytest.raises(AlreadyExists):
        store.put("empty", parts, if_absent=True)


def test_an_object_may_be_a_whole_pack_of_many_parts(store: ObjectStore) -> None:
    piece = os.urandom(PACK // 2048 - 1)
    parts = [piece] * 2049  # more than one writev takes
    store.put("packs/ab/big", parts, if_absent=True)
    content = b"".join(parts)
    assert store.size("packs/ab/big") == len(content)
    assert store.get("packs/ab/big") == content
    store.put("packs/ab/big", [memoryview(content)[:-1]])
    assert store.get("packs/ab/big") == content[:-1]


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [(0, 4, b"0123"), (3, 4, b"3456"), (6, 4, b"6789"), (7, 4, b"789"), (0, 10**15, b"0123456789"), (10, 4, b""), (11, 4, b""),
     (2**40, 4, b""), (5, 0, b""), (10, 0, b"")],
)  # fmt: skip
def test_a_range_ends_where_the_object_ends(store: ObjectStore, offset: int, length: int, expected: bytes) -> None:
    store.put("digits", [b"0123456789"])
    assert store.get_range("digits", offset, length) == expected


def test_ranges_may_be_read_by_many_threads(store: ObjectStore) -> None:
    content = os.urandom(1 << 20)
    for number in range(4):
        store.put(f"packs/{number}", [content[number:]])

    def read(thread: int) -> bool:
        pieces = ((number, offset) for offset in range(thread, 1 << 20, 60_000) for number in range(4))
        return all(store.get_range(f"packs/{n}", at, 700) == content[n + at : n + at + 700] for n, at in pieces)

    assert together(read, 4) == [True] * 4


@pytest.mark.parametrize("length", [0, 5])
def test_what_is_not_there_is_not_found(store: ObjectStore, length: int) -> None:
    store.put("packs/ab/there", [b"x"])
    for name in ("absent", "packs/ab/absent", "nowhere/absent"):
        for ask in (store.get, store.size, lambda name: store.get_range(name, 0, length)):
            with pytest.raises(ObjectNotFound) as caught:
                ask(name)
            assert caught.value.name == name


def test_a_put_replaces_the_object_whole(store: ObjectStore) -> None:
    store.put("vms/a", [b"a long first content"])
    assert store.get_range("vms/a", 0, 100) == b"a long first content"
    store.put("vms/a", [b"short"])
    assert store.get("vms/a") == b"short"
    assert store.get_range("vms/a", 0, 100) == b"short"
    assert [(found.name, found.size) for found in store.list("vms/")] == [("vms/a", 5)]


def test_if_absent_changes_nothing_that_is_there(store: ObjectStore) -> None:
    store.put("points/p", [b"tombstone"], if_absent=True)
    with pytest.raises(AlreadyExists) as caught:
        store.put("points/p", [b"point"], if_absent=True)
    assert caught.value.name == "points/p"
    assert store.get("points/p") == b"tombstone"
    assert names(store) == ["points/p"]
    store.delete("points/p")
    store.put("points/p", [b"point"], if_absent=True)
    assert store.get("points/p") == b"point"


def test_of_several_writers_exactly_one_wins(store: ObjectStore) -> None:
    # SeaweedFS lets those that come second look once a second whether it is their turn.
    for race in range(2 if store.traits.remote else 20):
        name = f"points/{race}"

        def write(thread: int, name: str = name) -> int | None:
            try:
                store.put(name, [b"thread ", str(thread).encode()], if_absent=True)
            except AlreadyExists:
                return None
            return thread

        winners = [result for result in together(write, 6) if result is not None]
        assert len(winners) == 1
        assert store.get(name) == f"thread {winners[0]}".encode()


def test_equal_writers_are_two_writers(store: ObjectStore) -> None:
    """Two collectors put the same tombstone: one of them has won, and only one."""

    def write(_: int) -> bool:
        try:
            store.put("lock/gc", [b"the same"], if_absent=True)
        except AlreadyExists:
            return False
        return True

    assert sorted(together(write, 6)) == [False] * 5 + [True]  # type: ignore[type-var]


def test_an_object_is_never_seen_in_part(store: ObjectStore) -> None:
    contents = {bytes([fill]) * size for fill, size in ((1, 300_000), (2, 200_000), (3, 1))}
    store.put("vms/a", [next(iter(contents))])
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for content in contents:
                store.put("vms/a", [content[:1000], content[1000:]])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(60):
            assert store.get("vms/a") in contents
            assert len(store.get_range("vms/a", 0, 10**6)) in {300_000, 200_000, 1}
    finally:
        stop.set()
        writer.join()


def test_a_deleted_object_is_gone(store: ObjectStore) -> None:
    store.put("packs/ab/x", [b"x"])
    store.put("packs/ab/y", [b"y"])
    assert store.get_range("packs/ab/x", 0, 1) == b"x"
    store.delete("packs/ab/x")
    for ask in (store.get, store.size, lambda name: store.get_range(name, 0, 1)):
        with pytest.raises(ObjectNotFound):
            ask("packs/ab/x")
    assert names(store) == ["packs/ab/y"]
    store.delete("packs/ab/x")
    store.delete("packs/zz/x")


def test_a_listing_has_all_below_its_prefix(store: ObjectStore) -> None:
    everything = [f"packs/{number % 7:02x}/{number:04x}" for number in range(260)]
    everything += ["everywhen", "packs-of-others", "twins/packs/00/0000", "packs/top"]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: store.put(name, [b"x" * (len(name) % 3)]), everything))
    assert names(store) == sorted(everything)
    assert names(store, "packs/") == sorted(name for name in everything if name.startswith("packs/"))
    assert names(store, "packs/03/") == sorted(name for name in everything if name.startswith("packs/03/"))
    assert names(store, "pack/") == []
    assert names(store, "packs/zz/") == []
    assert names(store, "everywhen/") == []
    assert {found.name: found.size for found in store.list()} == {name: len(name) % 3 for name in everything}


def test_a_listing_survives_deletions_while_it_is_read(store: ObjectStore) -> None:
    for number in range(20):
        store.put(f"packs/{number:02}", [b"x"])
    listing = store.list("packs/")
    first = next(iter(listing)).name
    for number in range(20):
        store.delete(f"packs/{number:02}")
    rest = [found.name for found in listing]
    assert len({first, *rest}) == len(rest) + 1
    assert names(store) == []


def test_times_do_not_run_backwards(store: ObjectStore) -> None:
    store.put("sessions/a", [b"1"])
    (before,) = store.list("sessions/")
    store.put("sessions/a", [b"2"])
    (after,) = store.list("sessions/")
    assert 0 < before.modified_ns <= after.modified_ns


@pytest.mark.parametrize(
    "name",
    ["", "/", "a/", "/a", "a//b", ".", "..", "a/../b", ".tmp-1", "a/.b", "A", "ä", "a b", "a\\b", "a\0", "a\n", "x" * 201],
)
def test_a_name_that_not_every_store_can_hold_is_refused(store: ObjectStore, name: str) -> None:
    for ask in (
        store.get,
        store.size,
        store.delete,
        lambda name: store.put(name, [b""]),
        lambda name: store.get_range(name, 0, 1),
    ):
        with pytest.raises(ValueError, match="not an object name"):
            ask(name)
    if name:
        with pytest.raises(ValueError, match=r"not an? (object name|prefix)"):
            list(store.list(name if name == "/" else name + "x"))


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, -1)])
def test_a_range_that_no_object_has_is_refused(store: ObjectStore, offset: int, length: int) -> None:
    store.put("a", [b"x"])
    with pytest.raises(ValueError, match="not a range"):
        store.get_range("a", offset, length)


def test_a_name_may_have_200_characters(store: ObjectStore) -> None:
    name = "twins/" + "x" * 194
    store.put(name, [b"x"])
    assert names(store) == [name]


def test_space_is_unknown_or_plausible(store: ObjectStore) -> None:
    space = store.space()
    assert space is None or 0 <= space.free <= space.total


def test_the_store_keeps_its_promises(store: ObjectStore) -> None:
    assert probe_traits(store, "probe/0123") == store.traits
    assert store.traits.put_if_absent
    assert store.traits.consistent_list
    assert names(store) == []
