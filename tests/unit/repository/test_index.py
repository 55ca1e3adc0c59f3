# SPDX-License-Identifier: AGPL-3.0-or-later
"""The chunk index: best copies, several processes and threads, damage, removal (rule 4.9.8, I-7)."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_samples import name, names_of, pack_id, pack_of, random_names, random_pack  # type: ignore[import-not-found]

from everywhen.formats.pack import FRAME_SIZE
from everywhen.repository.index import run_cache, run_merge
from everywhen.repository.index.index import ChunkIndex
from everywhen.repository.index.run_cache import discard
from everywhen.repository.index.runs import CacheDamaged


def opened(path: Path) -> ChunkIndex:
    return ChunkIndex(str(path / "index"), os.urandom)


def test_a_full_copy_wins_over_a_delta_wherever_it_is(tmp_path: Path) -> None:
    index = opened(tmp_path)
    index.add_pack(pack_id(1), pack_of([(name(1), (name(9),)), (name(2), ())]))
    index.flush()
    index.add_pack(pack_id(2), pack_of([(name(3), ()), (name(1), ()), (name(2), (name(9),))]))
    located = index.lookup(names_of(name(1), name(2), name(3), name(4)))
    assert located.found.tolist() == [True, True, True, False]
    assert [index.pack_id(number) for number in located.pack[:3].tolist()] == [pack_id(2), pack_id(1), pack_id(2)]
    assert located.is_delta.tolist() == [False] * 4
    assert located.length.tolist() == [101 + FRAME_SIZE, 101 + FRAME_SIZE, 100 + FRAME_SIZE, 0]
    assert located.raw_length.tolist() == [65536, 65536, 65536, 0]
    assert located.offset.tolist()[:2] == [128 + 100 + FRAME_SIZE, 128 + 100 + FRAME_SIZE]
    assert [copy.pack for copy in index.all_copies(name(1))] == [pack_id(2), pack_id(1)]
    one = index.lookup_one(name(1))
    assert one is not None
    assert not one.is_delta


def test_only_full_copies_when_bases_are_wanted(tmp_path: Path) -> None:
    index = opened(tmp_path)
    index.add_pack(pack_id(1), pack_of([(name(1), (name(2), name(3))), (name(2), ())]))
    assert index.lookup(names_of(name(1), name(2)), full_only=True).found.tolist() == [False, True]
    assert index.lookup_one(name(1), full_only=True) is None
    delta = index.lookup_one(name(1))
    assert delta is not None
    assert delta.is_delta
    keys = np.array([int.from_bytes(name(n)[:8], "big") for n in (1, 2)], dtype=np.uint64)
    assert index.names_of_full(keys).tolist() == names_of(bytes(32), name(2)).tolist()


def test_names_with_the_same_key_are_told_apart(tmp_path: Path) -> None:
    index = opened(tmp_path)
    index.add_pack(pack_id(1), pack_of([(name(n, key=5), ()) for n in range(40)]))
    index.flush()
    located = index.lookup(names_of(*(name(n, key=5) for n in range(50))))
    assert located.found.tolist() == [True] * 40 + [False] * 10
    assert located.length[:40].tolist() == [100 + FRAME_SIZE + n for n in range(40)]
    assert index.lookup_one(name(45, key=5)) is None


def test_excluded_packs_and_damaged_copies_are_passed_over_even_when_named_first(tmp_path: Path) -> None:
    index = opened(tmp_path)
    index.exclude([pack_id(1)])
    index.exclude_copies(pack_id(2), [128])
    for number in (1, 2):
        index.add_pack(pack_id(number), pack_of([(name(1), ()), (name(2), ())]))
    located = index.lookup(names_of(name(1), name(2)))
    assert located.found.tolist() == [False, True]
    assert index.pack_id(int(located.pack[1])) == pack_id(2)
    assert index.lookup_one(name(1)) is None
    # A condemned pack can still be read; a damaged copy can't.
    assert [copy.pack for copy in index.all_copies(name(1))] == [pack_id(1)]
    assert [copy.pack for copy in index.all_copies(name(2))] == [pack_id(2), pack_id(1)]
    index.exclude_copies(pack_id(2), [128 + 100 + FRAME_SIZE])
    assert not index.lookup(names_of(name(2))).found.any()


def test_a_removed_pack_is_gone_for_others_too_and_its_entries_vanish(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    index, other = opened(tmp_path), opened(tmp_path)
    packs = [random_pack(rng, 9000) for _ in range(4)]
    for number, pack in enumerate(packs):
        index.add_pack(pack_id(number), pack)
    index.flush()
    index.remove_packs([pack_id(0), pack_id(1), pack_id(2)])
    assert not index.lookup(packs[0].names).found.any()
    other.refresh()
    assert other.lookup(packs[0].names).found.all()
    index.flush()
    assert [placed.run.count for placed in index.view()] == [9000]
    other.refresh()
    assert other.known_packs() == {pack_id(3)}
    assert not other.lookup(packs[0].names).found.any()
    assert other.lookup(packs[3].names).found.all()
    assert other.counts() == (1, 9000, int(packs[3].lengths.sum()) + FRAME_SIZE * 9000)
    # A pack that is listed again after all is added like a new one.
    other.add_pack(pack_id(0), packs[0])
    other.flush()
    assert opened(tmp_path).lookup(packs[0].names).found.all()


def test_two_processes_add_at_once_and_numbers_stay_what_they_were(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    one, two = opened(tmp_path), opened(tmp_path)
    packs = [random_pack(rng, 500) for _ in range(6)]
    before = {}
    for number, pack in enumerate(packs):
        index = (one, two)[number % 2]
        index.add_pack(pack_id(number), pack)
        before[number] = index.lookup(pack.names[:3]).pack.tolist()
    one.add_pack(pack_id(1), packs[1])  # two has it too
    one.flush()
    two.flush()
    one.flush()
    for index in (one, two, opened(tmp_path)):
        assert index.known_packs() == {pack_id(number) for number in range(6)}
        assert index.counts().chunks == 3000
        assert sum(placed.run.count for placed in index.view()) == 3000
        for number, pack in enumerate(packs):
            located = index.lookup(pack.names)
            assert located.found.all()
            assert {index.pack_id(known) for known in located.pack.tolist()} == {pack_id(number)}
    for number in range(6):
        index = (one, two)[number % 2]
        assert {index.pack_id(known) for known in before[number]} == {pack_id(number)}


def test_a_pack_added_while_others_add_and_remove_it_is_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(10)
    one, two = opened(tmp_path), opened(tmp_path)
    pack = random_pack(rng, 100)
    one.add_pack(pack_id(1), pack)
    two.add_pack(pack_id(1), pack)
    two.flush()
    two.remove_packs([pack_id(1)])
    two.flush()
    one.flush()
    for index in (one, opened(tmp_path)):
        assert index.known_packs() == {pack_id(1)}
        assert index.lookup(pack.names).found.all()


def test_a_merge_that_was_overtaken_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(11)
    slow, quick = opened(tmp_path), opened(tmp_path)
    packs = [random_pack(rng, 100) for _ in range(3)]
    slow.add_pack(pack_id(0), packs[0])
    slow.flush()
    overtaken = list[bool]()

    def overtake(*args: Any) -> None:
        run_merge.merge(*args)
        if not overtaken:
            overtaken.append(True)
            quick.add_pack(pack_id(1), packs[1])
            quick.flush()

    monkeypatch.setattr(run_cache, "merge", overtake)
    slow.add_pack(pack_id(2), packs[2])
    slow.flush()
    assert overtaken
    slow.refresh()
    for index in (slow, quick, opened(tmp_path)):
        index.refresh()
        assert all(index.lookup(pack.names).found.all() for pack in packs)
        assert sum(placed.run.count for placed in index.view()) == 300


def test_lookups_from_threads_while_packs_are_added_and_files_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_cache, "_MEMORY_ROWS", 3000)
    monkeypatch.setattr(run_cache, "_MAX_FILES", 3)
    index = opened(tmp_path)
    rng = np.random.default_rng(2)
    packs = [random_pack(rng, 400) for _ in range(60)]
    index.add_pack(pack_id(0), packs[0])
    added, failures = [0], list[int]()

    def look() -> None:
        mine = np.random.default_rng(threading.get_ident() % 1000)
        while added[0] < 59 and not failures:
            number = int(mine.integers(0, added[0] + 1))
            located = index.lookup(packs[number].names)
            if not located.found.all() or {index.pack_id(n) for n in located.pack.tolist()} != {pack_id(number)}:
                failures.append(number)
            if index.lookup_one(packs[number].names[0].tobytes()) is None:
                failures.append(number)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(1, 60):
        index.add_pack(pack_id(number), packs[number])
        added[0] = number
    for thread in threads:
        thread.join()
    assert failures == []
    index.flush()
    assert len(index.view()) == 1
    assert len([entry for entry in os.listdir(tmp_path / "index") if entry.startswith("run-")]) == 1


def test_damage_is_never_an_answer(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    index = opened(tmp_path)
    pack = random_pack(rng, 3000)
    index.add_pack(pack_id(1), pack)
    index.close()
    files = [entry.path for entry in os.scandir(tmp_path / "index") if entry.name != "lock"]
    assert len(files) == 2
    for file in files:
        content = Path(file).read_bytes()
        for change in (content[: len(content) // 2], content[:60], b"", bytes(len(content))):
            Path(file).write_bytes(change)
            with pytest.raises(CacheDamaged):
                opened(tmp_path)
        Path(file).write_bytes(content)
    assert opened(tmp_path).lookup(pack.names).found.all()
    discard(str(tmp_path / "index"))
    discard(str(tmp_path / "nothing"))
    assert opened(tmp_path).known_packs() == set()


def test_a_cache_deleted_under_a_running_process_is_begun_anew(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    packs = [random_pack(rng, 200) for _ in range(3)]
    index = opened(tmp_path)
    index.add_pack(pack_id(0), packs[0])
    index.flush()
    index.add_pack(pack_id(1), packs[1])
    for entry in os.scandir(tmp_path / "index"):
        os.unlink(entry.path)
    (tmp_path / "index").rmdir()
    index.flush()
    assert all(index.lookup(pack.names).found.all() for pack in packs[:2])
    fresh = opened(tmp_path)
    assert fresh.known_packs() == {pack_id(1)}
    fresh.add_pack(pack_id(2), packs[2])
    fresh.add_pack(pack_id(0), packs[0])
    fresh.flush()
    index.flush()
    assert all(index.lookup(pack.names).found.all() for pack in packs)
    assert len(index.all_copies(packs[0].names[0].tobytes())) == 1


KILLED = """
import os, sys, numpy as np
from everywhen.repository.index import run_cache, run_merge
from everywhen.repository.index.index import ChunkIndex
from everywhen.formats.pack import PackIndex
where, moment = sys.argv[1:]
def die(*args, **kwargs): os._exit(9)
if moment == "before the rename": run_cache.RunCache._place = die
if moment == "before the manifest": run_cache.RunCache._replace = die
if moment == "while sweeping": run_cache._sweep = die
index = ChunkIndex(where, os.urandom)
count = 1000
nines = np.full(count, 9, "u4")
index.add_pack(bytes(16), PackIndex(np.full((count, 32), 7, "u1"), nines, nines, np.zeros(count, "u1")))
index.flush()
"""


@pytest.mark.parametrize("moment", ["before the rename", "before the manifest", "while sweeping"])
def test_a_writer_killed_at_any_moment_leaves_a_cache_that_opens_and_is_swept(tmp_path: Path, moment: str) -> None:
    rng = np.random.default_rng(6)
    index = opened(tmp_path)
    pack = random_pack(rng, 100)
    index.add_pack(pack_id(1), pack)
    index.flush()
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "index"), moment], check=False)
    assert killed.returncode == 9
    after = opened(tmp_path)
    assert after.known_packs() == ({pack_id(1), bytes(16)} if moment == "while sweeping" else {pack_id(1)})
    assert after.lookup(pack.names).found.all()
    after.add_pack(pack_id(2), random_pack(rng, 100))
    after.flush()
    files = sorted(os.listdir(tmp_path / "index"))
    assert [file for file in files if file.endswith(".unfinished")] == []
    assert len(files) == 2 + len(after.view())
    assert after.counts().packs == len(after.known_packs())


def test_a_file_that_another_process_is_writing_is_not_swept(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    index, other = opened(tmp_path), opened(tmp_path)
    index.add_pack(pack_id(1), random_pack(rng, 100))
    with other._cache._new_file(10, other._cache._locked()) as (unfinished, _):
        index.flush()
        assert f"run-{unfinished.hex()}.unfinished" in os.listdir(tmp_path / "index")
    assert f"run-{unfinished.hex()}.unfinished" not in os.listdir(tmp_path / "index")


def test_batches_of_any_size_and_none(tmp_path: Path) -> None:
    index = opened(tmp_path)
    assert len(index.lookup(np.empty((0, 32), dtype=np.uint8)).found) == 0
    assert not index.lookup(random_names(np.random.default_rng(8), 5)).found.any()
    index.add_pack(pack_id(1), pack_of([]))
    index.flush()
    assert opened(tmp_path).known_packs() == {pack_id(1)}


def test_entries_stay_within_64_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    index = opened(tmp_path)
    for number in range(4):
        index.add_pack(pack_id(number), random_pack(rng, 50_000))
    index.close()
    size = sum(entry.stat().st_size for entry in os.scandir(tmp_path / "index"))
    assert size / 200_000 < 64.5


def test_nothing_asked_for_is_nothing_found(tmp_path: Path) -> None:
    index = opened(tmp_path)
    index.add_pack(pack_id(1), pack_of([(name(1), ())]))
    assert index.lookup(names_of(name(1))[:0]).found.tolist() == []
    assert index.decodable(names_of(name(1))[:0]).tolist() == []


def test_a_delta_counts_as_known_only_with_a_usable_full_base(tmp_path: Path) -> None:
    index = opened(tmp_path)
    index.add_pack(pack_id(1), pack_of([(name(1), ()), (name(9), (name(1),))]))
    index.add_pack(pack_id(2), pack_of([(name(2), (name(1),)), (name(3), (name(1), name(4))), (name(5), (name(9),))]))
    asked = names_of(name(1), name(2), name(3), name(5), name(6))
    assert index.decodable(asked).tolist() == [True, True, False, False, False]
    index.exclude([pack_id(1)])
    assert index.decodable(asked).tolist() == [False] * 5
