# SPDX-License-Identifier: AGPL-3.0-or-later
"""A VM that is off: a recovery point has its disks, captured or read from its images, and its start is waited for.

Nobody writes to the images meanwhile, or it shows in their times and sizes: then they are read again, by the code of `backup`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from everywhen.block.device import DeviceError
from everywhen.block.image_errors import ImageError
from everywhen.capture.qmp import MonitorError
from everywhen.formats.ids import PointId
from everywhen.formats.point import RecoveryPoint
from everywhen.services.failures import Failure
from everywhen.services.protect.capture_order import REPOSITORY_FAILS, CaptureOrder, Stopped, Time, Told
from everywhen.services.protect.recipient import Recipient
from everywhen.services.protect.wishes import Pause, Resume, Wishes, refuse

_LOOK_S = 2.0
_AGAIN_S = 60.0
"""So long after a try to read images that did not succeed."""


@dataclass(slots=True)
class Absence:
    """One time that a VM is off. `seen`: its images (`images_seen`) when it ended; `complete`: the newest point, when it shows
    all that was written until then; `until_ns`: the last instant at which the VM was seen off."""

    recipient: Recipient
    name: str
    order: CaptureOrder
    told: Told
    time: Time
    wishes: Wishes
    seen: tuple[object, ...]
    complete: RecoveryPoint | None
    until_ns: int = 0
    _obstacle: str = ""
    """Why its images were not read."""

    def sit_out(self, why: str) -> None:
        """Until the VM is on, or the end is wanted."""
        seen = self.seen if self.complete else None
        next_try = self.time.monotonic()
        self._tell(why)
        while not self.wishes.ending:
            now = images_seen(self.order)
            if now and now != seen and self.time.monotonic() >= next_try:
                next_try = self.time.monotonic() + _AGAIN_S
                self.complete = None
                if self._read():
                    seen = now
                if self.wishes.ending:
                    return
                self._tell(why)
            if not self._is_off():
                return
            self.until_ns = self.recipient.surroundings.clock()
            if (newest := rest(_LOOK_S, self.time, self.wishes, self.told)) is not None:
                if newest and self._is_complete(PointId(newest)):  # it was rolled back in the pause
                    seen = images_seen(self.order)
                self._tell(why)

    def _tell(self, why: str) -> None:
        self.told.off(f"{why}; its images were not read: {self._obstacle}" if self._obstacle else why, self.complete)

    def _is_complete(self, newest: PointId) -> bool:
        """Take it from somebody else that the images show this point; whether there is such a one."""
        try:
            found = self.recipient.point(newest)
        except REPOSITORY_FAILS:
            return False  # then they are read, and compared
        if found is not None:
            self.complete, self.until_ns = found, self.recipient.surroundings.clock()
            self.told.sealed(found, 0)
        return found is not None

    def _is_off(self) -> bool:
        try:
            return self.order.hypervisor.is_off()
        except MonitorError:
            return True  # libvirt itself may be away: that does not start a VM

    def _read(self) -> bool:
        """A point of the images; whether it was made: not while somebody has them open, nor when the VM starts meanwhile."""
        next_look = self.time.monotonic() + _LOOK_S

        def report(done: int, total: int | None) -> None:
            nonlocal next_look
            if (wish := self.wishes.wait(0)) is not None:
                refuse(wish, "the VM is off, and its images are being read just now")
            if self.wishes.ending:
                raise Stopped
            if self.time.monotonic() >= next_look:
                self.told.alive()
                if not self._is_off():
                    raise Stopped
                next_look = self.time.monotonic() + _LOOK_S
            self.told.copying(done, total or 0)

        try:
            made = self.recipient.back_up(self.name, self.order, report)
        except Stopped:
            return False
        except Failure as failure:
            self._obstacle = failure.what.rstrip(".")
            return False
        except (MonitorError, ImageError, DeviceError, OSError, *REPOSITORY_FAILS) as error:
            self._obstacle = str(error)
            return False
        if isinstance(made, str):
            self._obstacle = made
            return True  # nor can they be later
        self._obstacle = ""
        self.told.sealed(made, 0)
        self.complete = made
        return True


def images_seen(order: CaptureOrder) -> tuple[object, ...]:
    """What shows whether a VM's images were written to since; nothing where they cannot be read."""
    found = []
    try:
        for name, disk in sorted(order.hypervisor.images().items()):
            if not disk.why_not and (not order.disks or name in order.disks):
                status = os.stat(disk.path)
                found.append((name, *disk, status.st_ino, status.st_size, status.st_mtime_ns))
    except (MonitorError, OSError):
        return ()
    return tuple(found)


def rest(seconds: float, time: Time, wishes: Wishes, told: Told) -> str | None:
    """Do not capture for so long; the end, and a wish to go on, end it early.

    None where there was no pause, else the point that the images show, as whoever ended it said, or ''.
    """
    until, paused = time.monotonic() + seconds, None
    while not wishes.ending and (left := until - time.monotonic()) > 0:
        told.alive()
        wish = wishes.wait(min(left, 1.0))
        match wish:
            case Resume():
                wish.reply({"resumed": True})
                return None if paused is None else wish.newest
            case Pause():
                until, paused = time.monotonic() + wish.seconds, ""
                told.paused(wish.seconds)
                wish.reply({"paused": wish.seconds})
            case None:
                pass
            case _:
                refuse(wish, "capture does not stand just now")
    return paused
