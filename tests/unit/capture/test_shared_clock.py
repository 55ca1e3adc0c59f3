# SPDX-License-Identifier: AGPL-3.0-or-later
"""Times of writes of several VMs: no effect before its cause, whatever is done to the wall clock."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from everywhen.capture.counters import Counters
from everywhen.capture.shared_clock import SharedClock, join
from everywhen.capture.spool_reader import read_spooled, spool_files
from everywhen.capture.spool_writer import SpoolWriter
from everywhen.capture.wall_clock import WatchedClock
from everywhen.formats.keyslot import Keyset
from everywhen.formats.segment import WRITE, SegmentHeader
from everywhen.repository.keys.cipher import Cipher
from everywhen.repository.keys.segment_keys import open_segment
from tests.shared_clocks import MEMORY, forgotten, page
from tests.spools import sink_order

SECOND = 10**9
NOW = 1_700_000_000 * SECOND
KEYS = Keyset(b"n" * 32, {})


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with forgotten(tmp_path / "state") as made:
        yield made


def joined(folder: Path, member: str, now_ns: int = NOW) -> SharedClock:
    return SharedClock(join(folder, member, now_ns, os.urandom), member)


def test_the_wall_clock_is_followed(folder: Path) -> None:
    one, other = joined(folder, "web1"), joined(folder, "web2")
    assert [one.stamp(NOW), other.stamp(NOW + 5), one.stamp(NOW + 3600 * SECOND)] == [NOW, NOW + 5, NOW + 3600 * SECOND]


def test_a_clock_that_is_set_back_turns_no_two_writes_round(folder: Path) -> None:
    one, other = joined(folder, "web1"), joined(folder, "web2")
    cause = one.stamp(NOW)
    effect = other.stamp(NOW - 3600 * SECOND)
    assert effect == cause + 1
    assert one.stamp(NOW - 3600 * SECOND) == cause + 2
    assert one.stamp(NOW + SECOND) == NOW + SECOND, "as soon as it is caught up with"


def test_what_was_stamped_by_one_that_ended_counts(folder: Path) -> None:
    cause = joined(folder, "web1").stamp(NOW)
    assert joined(folder, "web2", NOW - SECOND).stamp(NOW - SECOND) == cause + 1
    assert joined(folder, "web1", NOW - SECOND).stamp(NOW - SECOND) == cause + 2, "also by itself, in a new process"


def test_one_that_joins_while_others_stamp_is_seen_by_them(folder: Path) -> None:
    one = joined(folder, "web1")
    one.stamp(NOW)
    late = joined(folder, "web2").stamp(NOW + SECOND)
    assert one.stamp(NOW) == late + 1


def test_who_joins_again_is_the_same_member(folder: Path) -> None:
    names = {join(folder, member, NOW, os.urandom) for member in ("web1", "web2") for _ in range(300)}
    assert len(names) == 1
    joined(folder, "web3")  # there is still room
    assert [path.name for path in page(folder).parent.glob(f"{page(folder).name}*")] == [page(folder).name]


def test_a_clock_that_is_far_ahead_is_not_believed_by_who_begins(folder: Path) -> None:
    old = join(folder, "web1", NOW, os.urandom)
    one = SharedClock(old, "web1")
    one.stamp(NOW + 290 * SECOND)
    assert join(folder, "web2", NOW, os.urandom) == old
    one.stamp(NOW + 301 * SECOND)
    new = join(folder, "web2", NOW, os.urandom)
    assert new != old
    assert SharedClock(new, "web2").stamp(NOW) == NOW
    assert one.stamp(NOW) == NOW + 301 * SECOND + 1, "who has the old one goes on with it"
    assert join(folder, "web1", NOW, os.urandom) == new


@pytest.mark.parametrize("how", ["gone", "cut off", "full", "no name"])
def test_a_clock_that_cannot_be_used_is_replaced(folder: Path, how: str) -> None:
    old = join(folder, "web1", NOW, os.urandom)
    match how:
        case "gone":  # the host was started
            page(folder).unlink()
        case "cut off":
            page(folder).write_bytes(bytes(100))
        case "full":
            for number in range(239):
                assert join(folder, f"vm{number}", NOW, os.urandom) == old
        case _:
            page(folder).unlink()
            (folder / ".clock").write_text("../../etc/passwd")
    new = join(folder, "web2", NOW, os.urandom)
    assert new != old
    assert SharedClock(new, "web2").stamp(NOW) == NOW


@pytest.mark.parametrize("what", ["link", "folder", "pipe", "another's"])
def test_what_else_has_the_name_of_the_page_is_none(folder: Path, tmp_path: Path, what: str) -> None:
    """All may make files where it lies."""
    old = join(folder, "web1", NOW, os.urandom)
    there = page(folder)
    try:
        there.unlink()
        match what:
            case "link":
                (tmp_path / "page").write_bytes(bytes(4096))
                there.symlink_to(tmp_path / "page")
            case "folder":
                there.mkdir()
            case "pipe":
                os.mkfifo(there)
            case _:
                if os.geteuid() != 0:
                    pytest.skip("only root can give a file away")
                there.write_bytes(bytes(4096))
                os.chown(there, 65534, 65534)
                there.chmod(0o666)
        with pytest.raises(OSError, match=there.name):
            SharedClock(old, "web1")
        new = join(folder, "web1", NOW, os.urandom)
        assert new != old
        assert SharedClock(new, "web1").stamp(NOW) == NOW
        assert join(folder, "web2", NOW, os.urandom) == new
    finally:
        if there.is_dir():
            there.rmdir()
        else:
            there.unlink(missing_ok=True)


def test_a_page_for_which_there_is_no_room_is_not_left_behind(folder: Path) -> None:
    name = os.urandom(16)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            join(folder, "web1", NOW, lambda _: name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (MEMORY / f"everywhen-{name.hex()}").exists()
    assert joined(folder, "web1").stamp(NOW) == NOW


def test_the_page_is_for_nobody_else(folder: Path) -> None:
    join(folder, "web1", NOW, os.urandom)
    assert (page(folder).stat().st_mode & 0o777, (folder / ".clock").stat().st_mode & 0o777) == (0o600, 0o600)
    with pytest.raises(ValueError, match="not in list"):
        SharedClock(join(folder, "web1", NOW, os.urandom), "web2")


class Spooled:
    """A sink's spool, stamped by a wall clock that the test sets."""

    def __init__(self, folder: Path, clock: SharedClock | None, wall: list[int]) -> None:
        folder.mkdir()
        self.folder = folder
        self._counters = Counters.create()
        watched = WatchedClock(lambda: wall[0], lambda: wall[0])  # who would notice steps is not what is tested
        self._writer = SpoolWriter(sink_order(folder, [1 << 20], KEYS).place(), self._counters, clock, watched)

    def write(self) -> None:
        self._writer.take([(WRITE, 0, 0, 1, b"x")])

    def times(self) -> list[int]:
        self._writer.close()
        self._counters.close()

        def opener(header: SegmentHeader) -> Cipher:
            return open_segment(KEYS, header.repository, header.cipher, header.generation, header.key)

        (file,) = spool_files(self.folder)
        groups = [group for group, _ in read_spooled(file, opener, last=True)]
        return [group.time_ns + after for group in groups for after in group.times.tolist()]


@pytest.mark.parametrize("shared", [True, False])
def test_a_step_of_the_wall_clock_between_two_sinks(folder: Path, tmp_path: Path, *, shared: bool) -> None:
    """Without the shared clock each of them is in order by itself, and the two are not: that is what it is for."""
    wall = [NOW]
    clocks = [joined(folder, member) if shared else None for member in ("web1", "web2")]
    sinks = [Spooled(tmp_path / f"spool{number}", clock, wall) for number, clock in enumerate(clocks)]
    written = [(0, NOW), (1, NOW), (0, NOW + SECOND), (1, NOW - 10 * SECOND), (0, NOW - 9 * SECOND), (1, NOW + 2 * SECOND)]
    for who, now in written:
        wall[0] = now
        sinks[who].write()
    times = [sink.times() for sink in sinks]
    assert all(sorted(of_one) == of_one for of_one in times), "each by itself"
    in_order = [times[who].pop(0) for who, _ in written]
    assert (sorted(in_order) == in_order) is shared
    if shared:
        later = NOW + SECOND
        assert in_order == [NOW, NOW + 1, later, later + 1, later + 2, NOW + 2 * SECOND]
