# SPDX-License-Identifier: AGPL-3.0-or-later
"""The host's wall clock, by which records are stamped, and whether somebody has set it (design 4.10.4).

Between the wall clock and the one that counts since the host was started (CLOCK_BOOTTIME, which counts while it sleeps, too)
lies an offset that changes only where the clock is set: slewing, as NTP does it, moves both (clock_gettime(2)). So however
rarely it is looked at, what differs is a step. Steps while nobody looks, between two stretches of a capture, are found by the
offset that the last one has left in a file; it means nothing once the host was started again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from everywhen.formats.errors import FormatError
from everywhen.formats.fields import canonical_json, parse_json, text, whole

_NOTICED_NS = 500_000_000
_LOOKED_NS = 50_000_000
"""Where reading both clocks took longer than this, the process had to wait between the two, and that proves nothing."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Step(NamedTuple):
    """The clock was set, from what it would have said now to what it says; ns since 1970."""

    from_ns: int
    to_ns: int


def since_start() -> int:
    """Nanoseconds since the host was started, also those in which it slept."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class WatchedClock:
    """Both clocks of a host, in ns. For one thread at a time."""

    def __init__(self, wall: Callable[[], int] = time.time_ns, steady: Callable[[], int] = since_start) -> None:
        self._wall = wall
        self._steady = steady
        self._offset_ns = wall() - steady()
        self._file: tuple[Path, str] | None = None

    def kept_in(self, path: Path, boot: str | None = None) -> WatchedClock:
        """Itself, with the offset that is in a file, where the host has not been started since (`boot` names its start).

        Raises OSError.
        """
        boot = _BOOT.read_text("ascii").strip() if boot is None else boot
        self._file = path, boot
        try:
            value = parse_json("a clock's offset", path.read_bytes())
            if text(value, "boot") == boot:
                self._offset_ns = whole(value, "offset_ns")
        except (FileNotFoundError, FormatError):
            pass  # none was left, or a torn one: it is written whole with `keep`
        return self

    def look(self) -> tuple[int, Step | None]:
        """What time it is, and the step since the last look, where there was one."""
        before = self._steady()
        now = self._wall()
        offset = now - before
        if abs(offset - self._offset_ns) < _NOTICED_NS or self._steady() - before > _LOOKED_NS:
            return now, None
        step = Step(before + self._offset_ns, now)
        self._offset_ns = offset
        return now, step

    def keep(self) -> None:
        """Leave the offset for whoever comes after. Waits for the disk. Raises OSError."""
        if self._file is not None and self._offset_ns >= 0:  # else the clock stands before the host's start, about 1970
            path, boot = self._file
            new = path.with_name(path.name + ".new")
            new.write_bytes(canonical_json({"boot": boot, "offset_ns": self._offset_ns}))
            new.replace(path)
