# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a capture is told and given, whom it tells, and how a stretch of it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from everywhen.block.device import DeviceError
from everywhen.capture.export import CannotExport, DangerousExport
from everywhen.capture.hypervisor import Hypervisor
from everywhen.capture.nodes import NoDisks
from everywhen.capture.qmp import CommandFailed, MonitorError
from everywhen.capture.socket_access import NoAccess
from everywhen.capture.spool_reader import SpoolDamaged
from everywhen.capture.tap import TapFailed
from everywhen.formats.errors import FormatError
from everywhen.formats.ids import PointId
from everywhen.formats.point import Gap, RecoveryPoint
from everywhen.nbd.connection import NbdError
from everywhen.repository.errors import RepositoryError
from everywhen.repository.ledger import Vm
from everywhen.services.ages import SECOND
from everywhen.services.protect.choosing import CannotCapture
from everywhen.services.protect.quieting import Quieting
from everywhen.services.protect.spool_import import ForeignSpool, SpoolInUse
from everywhen.services.protect.wishes import Pause
from everywhen.storage.base import StorageError

_LATE = 1.5
"""So many intervals without a point, and one is missing."""


@dataclass(frozen=True, slots=True)
class CaptureOrder:
    """What to capture: the hypervisor; the folder of sockets and spool; the spool's limit in bytes; bytes a second to copy
    (0: no limit); seconds between two points; the disks that were named (`choosing.choose`), none: all;
    whether a VM that is off is waited for although it was never captured; how
    its guest is made quiet for points by time, None: it is not; the group that the VM is put into, '': into none, None: it
    stays where it is; seconds between two points where these alone are captured, 0: every write is."""

    hypervisor: Hypervisor
    folder: Path
    spool_limit: int
    rate: int
    seal_s: float
    disks: Mapping[str, str] = field(default_factory=dict)
    waits: bool = False
    quieting: Quieting | None = None
    group: str | None = None
    interval_s: float = 0.0

    def gap(self, gap: Gap | None, until_ns: int) -> Gap | None:
        """What of a time without captured writes is a gap: with points alone, only one in which a point is missing."""
        return gap if gap is not None and until_ns - gap.from_ns > _LATE * self.interval_s * SECOND else None

    @property
    def spool(self) -> Path:
        """Where the spool lies."""
        return self.folder / "spool"

    @property
    def sockets(self) -> Path:
        """Where those sockets are that the hypervisor uses: it is let into this folder, and no other."""
        return self.folder / "sockets"

    @property
    def sink(self) -> Path:
        """The socket of the sink, to which the taps lead."""
        return self.sockets / "sink.sock"


@dataclass(frozen=True, slots=True)
class Time:
    """Seconds that never run backwards, and waiting for some."""

    monotonic: Callable[[], float]
    sleep: Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Figures:
    """How a capture stands: numbers after the newest record that was taken, that is durable on this host, and that is in a
    point; bytes of data taken and of spool written for them, and those that wait in the spool now; the instant up to which
    every write is known to be durable on this host; within how many nanoseconds the sink answered half of the writes, 99 of
    100, and each one; nanoseconds of processor time that the sink, the watchdog and `protect` have had since they began; for
    how many seconds the taps stood that came off again with the newest point; bytes that it takes to make a point of all that
    was taken."""

    taken: int
    durable: int
    sealed: int
    data_bytes: int
    spool_bytes: int
    waiting_bytes: int
    covered_ns: int
    median_ns: int
    p99_ns: int
    worst_ns: int
    sink_ns: int = 0
    watchdog_ns: int = 0
    protect_ns: int = 0
    tapped_s: float = 0.0
    work_bytes: int = 0


class Told(Protocol):
    """Who is told how it goes."""

    def attached(self, disks: list[str], left_out: Mapping[str, str]) -> None:
        """`left_out`: what the guest can write to besides, and no point will have, with the reasons."""

    def measured(self, figures: Figures) -> None: ...

    def copying(self, done: int, total: int) -> None: ...

    def interrupted(self, kept: int, total: int) -> None:
        """The end was wished for before all was copied; so many bytes of disks will not be read again."""

    def sealed(self, point: RecoveryPoint, writes: int) -> None: ...

    def shipped(self) -> None: ...

    def lost(self, why: str) -> None: ...

    def waiting(self, why: str) -> None: ...

    def left_behind(self, what: str) -> None:
        """A sentence about files of runs before that stay on this host, and what to do about them."""

    def displaced(self, why: str) -> None:
        """Another capture of the VM began later, and this one stands aside."""

    def paused(self, seconds: float) -> None: ...

    def off(self, why: str, complete: RecoveryPoint | None) -> None:
        """The VM is off, and waited for; `complete`: the point that shows all that was ever written, where one does."""

    def alive(self) -> None:
        """There is nothing to tell, and that goes well."""


class Stretch(Protocol):
    """Capture of a VM from its beginning to a loss or the wish to end: of every write, or of points alone."""

    @property
    def parent(self) -> RecoveryPoint | None:
        """The VM's newest point."""

    @property
    def stood(self) -> bool:
        """Whether it has made a point."""

    @property
    def complete(self) -> bool:
        """Whether the VM ended in order, and the newest point has its last write."""

    @property
    def images(self) -> tuple[object, ...]:
        """Its images as they were seen when it had ended in order (`absence.images_seen`)."""

    @property
    def covered_ns(self) -> int:
        """The last instant of which it is known that nothing is missing up to there."""

    @property
    def epoch(self) -> int:
        """What was claimed for it last; 0: nothing yet."""

    def run(self, vm: Vm, parent: RecoveryPoint | None, known: dict[PointId, int], gap: Gap | None) -> None:
        """Capture until the end is wanted. `parent` is the VM's newest point, `known` has the numbers of those since which
        there may be bitmaps here, `gap` is what was not captured since.

        Raises CaptureLost, Paused, Stopped, and the errors of the layers below (ENDS).
        """


class CaptureLost(Exception):
    """The taps are gone; what changes from now on is known by the bitmaps alone. Says why."""


class DisksChanged(CaptureLost):
    """The VM has other disks than were tapped; a new stretch has them."""


class MissedInstant(Exception):
    """A point of an instant that a group has in common could not be made; capture goes on. Says why."""


class Paused(Exception):
    """A pause was asked for; the taps come off."""

    def __init__(self, wish: Pause) -> None:
        super().__init__(f"paused for {wish.seconds:g} s")
        self.wish = wish


class Stopped(Exception):
    """The end was wished for before the first point was made."""


REPOSITORY_FAILS = (StorageError, RepositoryError, FormatError)
"""The repository cannot be reached, is full, fences us, or is damaged where it is read: no reason to let go of a VM."""

ENDS = (
    CaptureLost,
    MonitorError,
    CommandFailed,
    TapFailed,
    NbdError,
    DeviceError,
    NoDisks,
    NoAccess,
    CannotCapture,
    CannotExport,
    DangerousExport,
    SpoolDamaged,
    ForeignSpool,
    SpoolInUse,
    OSError,
    *REPOSITORY_FAILS,
)
"""What ends a stretch of capture, and once it has stood is no reason not to try again."""
