# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether a capture may go on with its line of points: no later capture of the VM has made any, and the newest is still there.

Two captures of one VM are two branches of its history, never one (design 4.10.5). The later one wins: it was wished for later.
"""

from __future__ import annotations

from pathlib import Path

from everywhen.capture.qmp import MonitorError
from everywhen.capture.spool_reader import spool_files
from everywhen.formats.point import RecoveryPoint
from everywhen.repository.epochs import Claim, claim, claimed, later_point, latest_claim
from everywhen.repository.errors import NoSuchPoint
from everywhen.repository.repository import Repository
from everywhen.services.ages import SECOND
from everywhen.services.protect.capture_order import CaptureLost, CaptureOrder, Told
from everywhen.services.protect.wishes import Resume, Wishes, refuse
from everywhen.services.times import rfc3339

_LOOK_S = 2.0


class Displaced(CaptureLost):
    """Another capture of the VM began later; this one makes no points any more. Says which."""

    def __init__(self, by: Claim | None) -> None:
        who = f"on {by.holder.host}" if by and by.holder.host else "somewhere else"
        since = f" since {rfc3339(by.since_ns // SECOND * SECOND)}" if by and by.since_ns else ""
        super().__init__(f"it is captured by another run {who}{since}")


def claimed_epoch(repository: Repository, vm: str, parent: RecoveryPoint | None, spool: Path) -> int:
    """A number for a capture that begins after `parent`, with its spool in that folder. Raises ForeignClaim, StorageError."""
    # What could not be brought in lies there still, and its files must not be taken for the new one's.
    left = [file.epoch for file in spool_files(spool)]
    return claim(repository, vm, above=max([parent.epoch if parent else 0, *left]))


def demand_line(repository: Repository, vm: str, epoch: int, stream: str, *, cheaply: bool = False) -> None:
    """Raises Displaced when a later capture than this one has made a point; StorageError. `cheaply`: where nobody has claimed a
    later epoch, which is one short listing, the points are not looked at."""
    if cheaply and max(claimed(repository.documents, vm), default=0) <= epoch:
        return
    if later_point(repository, vm, epoch, stream):
        latest = latest_claim(repository.documents, vm)
        raise Displaced(latest if latest and latest.epoch > epoch else None)


def demand_parent(repository: Repository, parent: RecoveryPoint) -> None:
    """Raises CaptureLost when the point on which the next one would stand was deleted; Damaged, StorageError."""
    try:
        repository.points.get(parent.point)
    except NoSuchPoint as error:
        raise CaptureLost(f"{error}; what changed since then can be laid over nothing, so all is read") from error


def demand_turn(repository: Repository, vm: str, epoch: int) -> None:
    """Before a run whose newest claim was `epoch` (0: none yet) attaches again. Raises Displaced when another one has claimed
    a later epoch meanwhile, unless it is known to be dead, or this run itself, to which the store did not say that it has its
    claim; StorageError. Of a run on another host nobody here knows that it is dead, so its claim counts with or without points.

    A run that attaches for the first time takes over from whoever captures: that is what its user wants.
    """
    if epoch:
        latest, here = latest_claim(repository.documents, vm), repository.surroundings.holder
        if latest and latest.epoch > epoch and latest.holder != here and not latest.holder.is_dead(here):
            raise Displaced(latest)


def stand_aside(displaced: Displaced, order: CaptureOrder, told: Told, wishes: Wishes) -> None:
    """Until somebody wants this capture to go on, the end is wanted, or the VM is off here: its next start here is a reason to
    capture it. Two services that took over from each other again and again would both have gaps."""
    if _is_off(order):
        return  # it was moved, and nobody has to be told what he did
    told.displaced(str(displaced))
    while not wishes.ending:
        told.alive()
        match wishes.wait(_LOOK_S):
            case Resume() as wish:
                wish.reply({"resumed": True})
                return
            case None:
                if _is_off(order):
                    return
            case wish:
                refuse(wish, str(displaced))


def _is_off(order: CaptureOrder) -> bool:
    """Whether the VM is known to be off here."""
    try:
        return order.hypervisor.is_off()
    except MonitorError:
        return False
