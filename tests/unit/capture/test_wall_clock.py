# SPDX-License-Identifier: AGPL-3.0-or-later
"""Steps of the host's clock are noticed, whoever looked last, and nothing else is taken for one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from everywhen.capture.wall_clock import Step, WatchedClock, since_start

SECOND = 10**9
NOON = 1_795_348_800 * SECOND


@dataclass
class Host:
    """Its two clocks; between two readings passes `reading_ns`."""

    wall_ns: int = NOON
    steady_ns: int = 5 * SECOND
    reading_ns: int = 0

    def passes(self, ns: int) -> None:
        self.wall_ns += ns
        self.steady_ns += ns

    def _read(self) -> None:
        self.passes(self.reading_ns)

    def wall(self) -> int:
        self._read()
        return self.wall_ns

    def steady(self) -> int:
        self._read()
        return self.steady_ns

    def clock(self) -> WatchedClock:
        return WatchedClock(self.wall, self.steady)


def test_a_step_is_told_once_and_however_late() -> None:
    host = Host()
    clock = host.clock()
    host.passes(3600 * SECOND)
    assert clock.look() == (NOON + 3600 * SECOND, None)
    host.wall_ns -= 37 * SECOND
    host.passes(10 * SECOND)
    now = NOON + 3573 * SECOND
    assert clock.look() == (now, Step(now + 37 * SECOND, now))
    assert clock.look() == (now, None)
    host.wall_ns += SECOND
    assert clock.look() == (now + SECOND, Step(now, now + SECOND))


@pytest.mark.parametrize("by_ns", [499_999_999, -499_999_999])
def test_what_is_no_step(by_ns: int) -> None:
    host = Host()
    clock = host.clock()
    host.wall_ns += by_ns
    assert clock.look()[1] is None


def test_a_process_that_had_to_wait_between_two_clocks_has_seen_no_step() -> None:
    """Stopped for a second between the two, it would find the clock set forward now, and back with its next look."""
    host = Host()
    clock = host.clock()
    host.reading_ns = SECOND
    assert clock.look()[1] is None
    host.reading_ns = 0
    assert clock.look()[1] is None


def test_a_step_while_nobody_looked(tmp_path: Path) -> None:
    host, path = Host(), tmp_path / "clock.json"
    host.clock().kept_in(path, "boot 1").keep()
    host.passes(60 * SECOND)
    assert host.clock().kept_in(path, "boot 1").look()[1] is None
    host.wall_ns += 5 * SECOND
    clock = host.clock().kept_in(path, "boot 1")
    now = NOON + 65 * SECOND
    assert clock.look() == (now, Step(now - 5 * SECOND, now))
    assert host.clock().kept_in(path, "boot 1").look()[1] is not None, "not kept yet"
    clock.keep()
    assert host.clock().kept_in(path, "boot 1").look()[1] is None
    assert host.clock().kept_in(path, "boot 2").look()[1] is None
    host.wall_ns += 5 * SECOND
    assert host.clock().kept_in(path, "boot 2").look()[1] is None, "since then it has another offset, whatever was done"


def test_a_file_that_was_not_written_by_us(tmp_path: Path) -> None:
    path = tmp_path / "clock.json"
    for content in (b"", b"[]", b'{"boot":"b","offset_ns":-1}', b'{"boot":"b"}', b'{"boot":"b","offset_ns":"5"}'):
        path.write_bytes(content)
        assert Host().clock().kept_in(path, "b").look() == (NOON, None)


def test_the_clocks_of_this_host(tmp_path: Path) -> None:
    clock = WatchedClock().kept_in(tmp_path / "clock.json")
    clock.keep()
    assert clock.look()[1] is None
    assert since_start() > 0
