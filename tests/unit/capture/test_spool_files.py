# SPDX-License-Identifier: AGPL-3.0-or-later
"""The spool: what was taken comes back in order, whatever a crash cuts off; what cannot be taken is refused, not dropped."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from everywhen.capture import spool_writer
from everywhen.capture.counters import (
    DURABLE,
    FINE,
    SPOOL_FAILED,
    SPOOL_FULL,
    SPOOL_SLOW,
    STATE,
    TAKEN,
    TAKEN_BYTES,
    WORK_BYTES,
    Counters,
)
from everywhen.capture.spool_reader import SpoolDamaged, SpoolFile, read_spooled, spool_files
from everywhen.capture.spool_writer import Record, SpoolWriter
from everywhen.capture.wall_clock import WatchedClock
from everywhen.formats.errors import Corrupt, UnsupportedVersion
from everywhen.formats.keyslot import Keyset
from everywhen.formats.segment import MARK, WRITE, ZERO, SegmentHeader
from everywhen.repository.keys.cipher import Cipher
from everywhen.repository.keys.segment_keys import open_segment
from tests.hypervisor import eventually
from tests.spools import sink_order

REPOSITORY = bytes(range(16))
KEYSET = Keyset(b"n" * 32, {1: b"a" * 32, 2: b"b" * 32})


@dataclass
class Spool:
    """A spool that is written by one epoch, read with a keyset."""

    folder: Path
    keyset: Keyset

    def writer(
        self, counters: Counters, *, epoch: int = 1, limit: int = 1 << 30, wall: WatchedClock | None = None
    ) -> SpoolWriter:
        order = sink_order(self.folder, [1 << 20], self.keyset, repository=REPOSITORY, epoch=epoch, limit=limit)
        return SpoolWriter(order.place(), counters, wall=wall)

    def opener(self, header: SegmentHeader) -> Cipher:
        return open_segment(self.keyset, REPOSITORY, header.cipher, header.generation, header.key)

    def records(self, file: SpoolFile, *, last: bool = True) -> list[Record]:
        found: list[Record] = []
        for group, _ in read_spooled(file, self.opener, last=last):
            data, start = group.data(), 0
            columns = (group.kinds, group.disks, group.offsets, group.lengths, group.data_ends())
            for kind, disk, offset, length, end in zip(*(column.tolist() for column in columns), strict=True):
                found.append((kind, disk, offset, length, data[start:end]))
                start = end
        return found


@pytest.fixture(params=[KEYSET, Keyset(b"n" * 32, {})], ids=["encrypted", "not encrypted"])
def spool(tmp_path: Path, request: pytest.FixtureRequest) -> Spool:
    return Spool(tmp_path, request.param)


@pytest.fixture
def counters() -> Iterator[Counters]:
    page = Counters.create()
    yield page
    page.close()


def written(spool: Spool, counters: Counters, count: int = 30) -> list[Record]:
    """Records of all kinds, in several groups."""
    writer = spool.writer(counters)
    taken: list[Record] = []
    for number in range(count):
        data = bytes([number]) * (1 + number % 5)
        record = [
            (WRITE, 0, number * 512, len(data), data),
            (ZERO, 1, number, 1 << 31, b""),
            (MARK, 0, 0, len(data), data),
        ][number % 3]
        assert writer.take([record]) == number
        taken.append(record)
        if number % 10 == 9:
            eventually(lambda upto=number + 1: counters.get(DURABLE) >= upto, "durable")  # type: ignore[misc]
    writer.close()
    assert counters.get(DURABLE) == count
    assert counters.get(STATE) == FINE
    return taken


def test_records_come_back_and_are_unreadable_without_the_keys(spool: Spool, counters: Counters) -> None:
    taken = written(spool, counters)
    (file,) = spool_files(spool.folder)
    assert spool.records(file) == spool.records(file, last=False) == taken
    if spool.keyset.generations:
        other = Spool(spool.folder, Keyset(b"n" * 32, {2: b"c" * 32}))
        assert other.records(file) == []
        with pytest.raises(SpoolDamaged):
            other.records(file, last=False)


def test_what_came_together_is_numbered_one_by_one_and_has_one_time(spool: Spool, counters: Counters) -> None:
    writer = spool.writer(counters)
    together: list[Record] = [(WRITE, 0, 512, 3, b"one"), (ZERO, 0, 4096, 1 << 20, b""), (WRITE, 1, 0, 5, b"three")]
    assert [writer.take(together), writer.take(together[:1])] == [0, 3]
    assert (counters.get(TAKEN), counters.get(TAKEN_BYTES)) == (4, 3 + 5 + 3)
    assert counters.get(WORK_BYTES) == 3 + 4096 + 5 + 3, "zeroes take something to make a point of"
    writer.close()
    (file,) = spool_files(spool.folder)
    assert spool.records(file) == [*together, together[0]]
    times = [time for group, _ in read_spooled(file, spool.opener, last=True) for time in group.times.tolist()]
    assert times[0] == times[1] == times[2] <= times[3]


def test_every_cut_leaves_the_records_before_it(spool: Spool, counters: Counters) -> None:
    taken = written(spool, counters)
    (file,) = spool_files(spool.folder)
    whole = file.path.read_bytes()
    seen = set()
    for size in range(len(whole)):
        file.path.write_bytes(whole[:size])
        found = spool.records(file)
        assert found == taken[: len(found)]
        seen.add(len(found))
    assert {0, 10, 20} <= seen


def test_every_flipped_byte_is_noticed(spool: Spool, counters: Counters) -> None:
    taken = written(spool, counters)
    (file,) = spool_files(spool.folder)
    whole = file.path.read_bytes()
    for at in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[at] ^= 0x10
        file.path.write_bytes(damaged)
        with pytest.raises((SpoolDamaged, Corrupt, UnsupportedVersion)):
            spool.records(file, last=False)
    file.path.write_bytes(whole)
    assert spool.records(file) == taken


def test_files_follow_one_another(spool: Spool, counters: Counters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_writer, "_FILE_BYTES", 300)
    taken = written(spool, counters)
    files = spool_files(spool.folder)
    assert len(files) == 3
    assert [record for file in files for record in spool.records(file, last=False)] == taken
    files[1].path.rename(files[1].path.with_name(f"{1:016x}-{7:016x}.segment"))
    with pytest.raises(SpoolDamaged, match="renamed"):
        spool.records(spool_files(spool.folder)[-1], last=False)


def test_what_came_in_while_the_disk_was_slow_can_be_read(
    tmp_path: Path, counters: Counters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_writer, "_GROUP_BYTES", 100_000)
    slow, write = threading.Event(), SpoolWriter._write_groups
    monkeypatch.setattr(SpoolWriter, "_write_groups", lambda self: slow.wait() and write(self))
    spool = Spool(tmp_path, KEYSET)
    writer = spool.writer(counters)
    taken = [(WRITE, 0, 512 * number, 30_000, os.urandom(30_000)) for number in range(40)]
    assert [writer.take([record]) for record in taken] == list(range(40))
    slow.set()
    writer.close()
    (file,) = spool_files(tmp_path)
    assert spool.records(file, last=False) == taken
    assert max(group.data_size for group, _ in read_spooled(file, spool.opener, last=False)) <= 130_000


def test_a_full_spool_takes_nothing_more_until_files_are_gone(tmp_path: Path, counters: Counters) -> None:
    spool = Spool(tmp_path, KEYSET)
    writer = spool.writer(counters, limit=100_000)
    for number in range(20):
        if writer.take([(WRITE, 0, 0, 50_000, os.urandom(50_000))]) is None:
            break
        eventually(lambda upto=number + 1: counters.get(DURABLE) >= upto or counters.get(STATE) != FINE, "written")  # type: ignore[misc]
    writer.close()
    assert counters.get(STATE) == SPOOL_FULL
    assert sum(len(spool.records(file)) for file in spool_files(tmp_path)) == 1


def test_a_file_that_goes_while_the_room_is_measured(tmp_path: Path, counters: Counters) -> None:
    """Whoever consumes the spool removes it between two looks of the writer: seen by name, and not there."""
    (tmp_path / "0-0.segment").symlink_to("gone")
    writer = Spool(tmp_path, KEYSET).writer(counters, limit=100_000)
    for _ in range(2):
        writer.take([(WRITE, 0, 0, 60_000, os.urandom(60_000))])
    writer.close()
    assert counters.get(STATE) == SPOOL_FULL


def test_a_spool_that_cannot_be_written_says_so(tmp_path: Path, counters: Counters) -> None:
    folder = tmp_path / "gone"
    writer = Spool(folder, KEYSET).writer(counters)
    assert writer.take([(ZERO, 0, 0, 1, b"")]) == 0
    eventually(lambda: counters.get(STATE) == SPOOL_FAILED, "failed")
    assert writer.take([(ZERO, 0, 0, 1, b"")]) is None
    writer.close()
    assert counters.get(DURABLE) == 0


def test_a_spool_that_is_too_slow_is_let_go(tmp_path: Path, counters: Counters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_writer, "_WAITING_BYTES", 1500)
    monkeypatch.setattr(SpoolWriter, "_write_groups", lambda self: None)
    writer = Spool(tmp_path, KEYSET).writer(counters)
    assert [writer.take([(WRITE, 0, 0, 600, bytes(600))]) for _ in range(3)] == [0, 1, None]
    assert counters.get(STATE) == SPOOL_SLOW
    writer.close()


def test_it_is_behind_while_half_of_the_memory_is_taken(
    tmp_path: Path, counters: Counters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_writer, "_WAITING_BYTES", 10_000)
    hanging, write = threading.Event(), SpoolWriter._write_groups
    monkeypatch.setattr(SpoolWriter, "_write_groups", lambda self: hanging.wait() and write(self))
    writer = Spool(tmp_path, KEYSET).writer(counters)
    behind = []
    for _ in range(3):
        writer.take([(WRITE, 0, 0, 2000, bytes(2000))])
        behind.append(writer.behind)
    hanging.set()
    eventually(lambda: not writer.behind, "it has caught up")
    writer.close()
    assert behind == [False, False, True]


def test_zeroes_that_wait_take_memory_too(tmp_path: Path, counters: Counters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_writer, "_WAITING_BYTES", 10_000)
    slow, write = threading.Event(), SpoolWriter._write_groups
    monkeypatch.setattr(SpoolWriter, "_write_groups", lambda self: slow.wait() and write(self))
    writer = Spool(tmp_path, KEYSET).writer(counters)
    taken = [writer.take([(ZERO, 0, 0, 4096, b"")]) for _ in range(100)]
    slow.set()
    writer.close()
    assert taken[-1] is None
    assert counters.get(STATE) == SPOOL_SLOW


def test_what_was_written_does_not_wait_any_more(tmp_path: Path, counters: Counters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_writer, "_WAITING_BYTES", 10_000)
    writer = Spool(tmp_path, KEYSET).writer(counters)
    for number in range(0, 90, 30):
        assert [writer.take([(ZERO, 0, 0, 4096, b"")]) for _ in range(30)] == list(range(number, number + 30))
        eventually(lambda upto=number + 30: counters.get(DURABLE) >= upto, "durable")  # type: ignore[misc]
    writer.close()


def test_each_record_has_its_own_time_however_long_the_spool_hangs(
    tmp_path: Path, counters: Counters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """32 bits of nanoseconds are 4.29 s: a group that stays open for longer must not date a write too early."""
    times = [10**18 + 3 * 10**9 * number for number in range(8)]
    now = [times[0]]
    monkeypatch.setattr(spool_writer, "_GROUP_SECONDS", 3600.0)
    spool = Spool(tmp_path, KEYSET)
    writer = spool.writer(counters, wall=WatchedClock(lambda: now[0], lambda: now[0]))
    for number in range(8):
        now[0] = times[number]
        assert writer.take([(WRITE, 0, number, 1, b"x")]) == number
    writer.close()
    (file,) = spool_files(tmp_path)
    groups = [group for group, _ in read_spooled(file, spool.opener, last=False)]
    assert [group.time_ns + time for group in groups for time in group.times.tolist()] == times


def test_the_journal_says_when_the_clock_was_set_and_its_time_never_runs_backwards(
    tmp_path: Path, counters: Counters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_writer, "_GROUP_SECONDS", 3600.0)
    noon, wall, steady = 1_795_348_800 * 10**9, [0], [0]
    wall[0] = noon
    spool = Spool(tmp_path, KEYSET)
    writer = spool.writer(counters, wall=WatchedClock(lambda: wall[0], lambda: steady[0]))

    def write_after(passed_s: int, set_by_s: int) -> None:
        wall[0] += (passed_s + set_by_s) * 10**9
        steady[0] += passed_s * 10**9
        writer.take([(WRITE, 0, 0, 1, b"x"), (ZERO, 0, 0, 1, b"")])

    for passed_s, set_by_s in ((1, 0), (1, -37), (1, 0), (36, 0), (1, 60)):
        write_after(passed_s, set_by_s)
    writer.close()
    found = [
        (kind, (group.time_ns + after - noon) // 10**9)
        for file in spool_files(tmp_path)
        for group, _ in read_spooled(file, spool.opener, last=True)
        for kind, after in zip(group.kinds.tolist(), group.times.tolist(), strict=True)
    ]
    both = (WRITE, ZERO)
    seconds = ((both, 1), ((MARK, *both), 1), (both, 1), (both, 2), ((MARK, *both), 63))
    assert found == [(kind, second) for kinds, second in seconds for kind in kinds]
    marks = [json.loads(record[4]) for record in spool.records(spool_files(tmp_path)[0]) if record[0] == MARK]
    assert [(one["from_ns"] - noon, one["to_ns"] - noon) for one in marks] == [
        (2 * 10**9, -35 * 10**9),
        (3 * 10**9, 63 * 10**9),
    ]


def test_a_step_is_noticed_where_nothing_is_written(tmp_path: Path, counters: Counters) -> None:
    wall = [10**18]
    spool = Spool(tmp_path, KEYSET)
    writer = spool.writer(counters, wall=WatchedClock(lambda: wall[0], lambda: 5).kept_in(tmp_path / "clock.json", "boot"))
    wall[0] -= 37 * 10**9
    eventually(lambda: counters.get(DURABLE) == 1, "a mark is there, and durable")
    writer.close()
    assert [(kind, json.loads(data)["mark"]) for kind, *_, data in spool.records(spool_files(tmp_path)[0])] == [
        (MARK, "clock set")
    ]
    assert WatchedClock(lambda: wall[0], lambda: 5).kept_in(tmp_path / "clock.json", "boot").look()[1] is None
