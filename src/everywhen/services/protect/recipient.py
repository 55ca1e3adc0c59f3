# SPDX-License-Identifier: AGPL-3.0-or-later
"""What capture asks of whoever consumes its spool and makes recovery points of it: a repository on this host
(`local_recipient.py`), or whatever else is put in its place where the parts are put together (`interfaces`).

The spool is files in a folder (`capture/spool_reader.py`), sealed for the recipient's public key: capture reads none of them.
So a recipient may be away: what waits for it waits there, and only what is asked of it here fails, with an error of
`capture_order.REPOSITORY_FAILS`, which ends no capture that stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from everywhen.block.device import BlockDevice
from everywhen.formats.fields import Json
from everywhen.formats.ids import PointId
from everywhen.formats.point import Gap, JournalPosition, RecoveryPoint
from everywhen.repository.intake import Ranges
from everywhen.repository.keys.segment_keys import JournalRecipient
from everywhen.repository.ledger import Vm
from everywhen.repository.minutes import DayOfMinutes
from everywhen.repository.repository import Surroundings
from everywhen.services.protect.capture_order import CaptureOrder, Told
from everywhen.services.protect.quieting import CRASH, Consistency

Report = Callable[[int, int | None], None]
"""Told bytes done and bytes in all."""


class Beginning(NamedTuple):
    """The VM, made known if it was new, and its newest point, when what other runs left is brought in; the numbers of those
    points whose bitmaps have all that changed since that one; until when what was left has every write (ns; 0: not known)."""

    vm: Vm
    newest: RecoveryPoint | None
    known: dict[PointId, int]
    left_ns: int


@dataclass(frozen=True, slots=True)
class PointFacts:
    """What a point says beside its disks: configuration files, the stream's first moment and what was not captured before it
    (`Origin`), the clock that stamped the records, `apart`; seconds that it took; its name; how quiet the guest was; the common
    instant that it shows, None: none; what is known of latencies, by day since 1970."""

    files: Mapping[str, bytes]
    began_ns: int = 0
    gap: Gap | None = None
    clock: str = ""
    apart: str = ""
    seconds: float = 0.0
    mark: str | None = None
    consistency: Consistency = CRASH
    at_ns: int | None = None
    latencies: Mapping[int, DayOfMinutes] = field(default_factory=dict)


class Laid(Protocol):
    """Which of a stream's records a point in the making has: as `services.replay.Replay`."""

    @property
    def sequence(self) -> int: ...

    @property
    def time_ns(self) -> int: ...

    @property
    def writes(self) -> int: ...

    @property
    def beyond(self) -> bool: ...

    @property
    def is_moment(self) -> bool: ...

    @property
    def ended(self) -> bool: ...


class DiskMaking(Protocol):
    """A disk of a point in the making."""

    @property
    def size_before(self) -> int | None:
        """Bytes that it had at the VM's newest point; None where nothing that it held then can be built upon."""

    @property
    def goes_on(self) -> bool:
        """Whether it has what an earlier making of it has kept: beside that, what was left of that copy is to be taken in."""

    def keep(self) -> Json:
        """What it has, durable on return: by that a later making finds it. Raises StorageError."""

    def take_in(
        self, device: BlockDevice, ranges: Ranges | None, progress: Callable[[int], None], enough: Callable[[], bool]
    ) -> Ranges:
        """Take what `device` has in these blocks (None: in all), over what was laid; which are left because it was `enough`.

        Raises StorageError, Damaged, DeviceError.
        """


class Making(Protocol):
    """A recovery point in the making."""

    @property
    def point(self) -> PointId:
        """Its name, by which bitmaps are called."""

    @property
    def disks(self) -> Sequence[DiskMaking]:
        """As the stream numbers them."""

    @property
    def laid(self) -> Laid: ...

    def lay(self, alive: Callable[[], None], until: int | None = None, until_ns: int | None = None) -> None:
        """Lay the stream's records that are in the spool, those before the number `until` and not after the time `until_ns`,
        over what was taken in. `alive` is called now and then. Raises SpoolDamaged, Corrupt, StorageError, Damaged."""

    def commit(self, parent: RecoveryPoint | None, facts: PointFacts) -> RecoveryPoint:
        """Make the point: the state after the newest record. Raises StorageError, Damaged, Fenced."""


class Spooled(Protocol):
    """Files of a spool that wait."""

    def size(self) -> int:
        """Bytes of them. Raises OSError."""

    def discard(self, closed: int) -> None:
        """Remove the files with lower numbers than `closed`: all their records came before the first moment. Raises OSError."""


class Consumption(Spooled, Protocol):
    """One stream, consumed. Everything raises what `REPOSITORY_FAILS` names, SpoolDamaged and OSError."""

    def demand_line(self, *, cheaply: bool = False) -> None:
        """Raises Displaced when a later capture of the VM has made a point. `cheaply`: where nobody has begun one, no more than
        that is asked."""

    def ship(self, begin: int, closed: int, alive: Callable[[], None]) -> None:
        """Take over the files with lower numbers than `closed`, durable on return, as the journal from record `begin` on."""

    def drop(self, sealed: int) -> None:
        """Remove files that were taken over, and whose records, all before number `sealed`, are in a point."""

    def remove(self) -> None:
        """Remove all files."""

    def first_point(
        self, parent: RecoveryPoint | None, disks: Sequence[tuple[str, int]], kept: Mapping[str, Json]
    ) -> AbstractContextManager[Making]:
        """Begin the stream's first point. `parent`: the VM's newest one; `disks`: names and bytes; `kept`: by disk, what an
        earlier making has kept (`DiskMaking.keep`). One that is not committed when the body ends was none."""

    def next_point(self, parent: RecoveryPoint, position: JournalPosition) -> AbstractContextManager[Making]:
        """Begin the one that follows `parent`, which was made at that position of the stream."""

    def last_point(self, parent: RecoveryPoint, begin: int, alive: Callable[[], None]) -> tuple[RecoveryPoint | None, int]:
        """Take over what there is; the sink has ended. A point of the last moment, None where nothing was written since
        `parent`; and until when every write is in it (ns; 0: not known)."""

    def count(self, days: Mapping[int, DayOfMinutes]) -> None:
        """Keep statistics."""


class Recipient(Protocol):
    """Who consumes what captures of VMs spool. Everything raises what `REPOSITORY_FAILS` names."""

    @property
    def surroundings(self) -> Surroundings:
        """This host's clock and randomness."""

    @property
    def key(self) -> JournalRecipient:
        """For whom spools are sealed."""

    def beginning(self, name: str, order: CaptureOrder, told: Told) -> Beginning:
        """Before a stretch of capture. Raises Failure, MonitorError, ForeignSpool, SpoolInUse, OSError."""

    def point(self, point: PointId) -> RecoveryPoint | None:
        """That one; None where there is none of that name."""

    def claim(self, vm: str, parent: RecoveryPoint | None, spool: Path) -> int:
        """A number for a capture that begins after `parent`, which no other of the VM has. Raises ForeignClaim."""

    def leave(self, vm: str, epoch: int, *, stood: bool) -> None:
        """That capture has ended; whether it `stood`."""

    def demand_turn(self, vm: str, epoch: int) -> None:
        """Before a run whose newest number was `epoch` (0: none yet) attaches again. Raises Displaced."""

    def demand_parent(self, parent: RecoveryPoint) -> None:
        """Raises CaptureLost when that point was deleted."""

    def consumption(self, vm: Vm, epoch: int, stream: str, spool: Path) -> Consumption:
        """Of a stream that is spooled into that folder."""

    def back_up(self, name: str, order: CaptureOrder, report: Report) -> RecoveryPoint | str:
        """A point of the images of a VM that is off; or why they cannot be read, now or later.

        Raises Failure, MonitorError, ImageError, DeviceError, OSError, and what `report` does.
        """
