# SPDX-License-Identifier: AGPL-3.0-or-later
"""A running VM under capture into a repository on this host: stretch after stretch, until the end is wanted."""

from __future__ import annotations

from everywhen.formats.ids import PointId
from everywhen.formats.point import RecoveryPoint
from everywhen.repository.ledger import Vm
from everywhen.repository.repository import Repository
from everywhen.services.capture_order import ENDS, CaptureOrder, Paused, Stopped, Time, Told
from everywhen.services.capturing import Capture
from everywhen.services.catalog import read_catalog
from everywhen.services.failures import Failed, Failure, WrongUsage
from everywhen.services.identities import record, vm_of
from everywhen.services.naming import is_name
from everywhen.services.spool_import import import_left
from everywhen.services.wishes import Mark, Pause, Resume, Ship, Wish, Wishes
from everywhen.storage.base import StorageError

_BACK_OFF_S, _LONGEST_BACK_OFF_S, _LASTED_S = 1.0, 300.0, 600.0


def protect(
    repository: Repository, name: str, order: CaptureOrder, told: Told, time: Time, wishes: Wishes
) -> RecoveryPoint | None:
    """Capture until the end is wanted, again and again if it is lost; gives the newest point.

    Raises Failure where it cannot be begun at all: no such monitor, nothing to capture, a disk that cannot be captured.
    """
    if not is_name(name):
        raise WrongUsage(f'"{name}" is not a name for a VM: use a-z, 0-9, dot, dash and underscore.', on=name)
    back_off, stood = _BACK_OFF_S, False
    newest: RecoveryPoint | None = None
    while True:
        capture = Capture(repository, order, told, time, wishes)
        began = time.monotonic()
        try:
            capture.run(*_beginning(repository, name, order, told))
        except Stopped:
            return capture.parent
        except Paused as pause:
            told.paused(pause.seconds)
            _rest(pause.seconds, time, wishes)
        except ENDS as error:
            stood = stood or capture.stood
            if not stood:
                if isinstance(error, StorageError):
                    raise  # it says for itself what is wrong with the repository
                raise _not_begun(name, order, error) from error
            told.lost(str(error))
            # A capture that lasted has earned a quick try.
            back_off = _BACK_OFF_S if time.monotonic() - began > _LASTED_S else min(2 * back_off, _LONGEST_BACK_OFF_S)
            _rest(back_off, time, wishes)
        else:
            return capture.parent
        newest = capture.parent or newest
        if wishes.ending:
            return newest


def _beginning(
    repository: Repository, name: str, order: CaptureOrder, told: Told
) -> tuple[Vm, RecoveryPoint | None, dict[PointId, int]]:
    """The VM, made known if it is new, its newest point and the numbers of all, when what other runs left is brought in."""
    catalog = read_catalog(repository)
    vm, known = vm_of(repository, catalog, name, order.hypervisor.identity())
    if not known:
        record(repository, vm)
    points = catalog.points_of(vm)
    if order.spool.is_dir() and (left := import_left(repository, order.spool, points)) is not None:
        points.append(left)
        told.sealed(left, 0)
    return vm, points[-1] if points else None, {point.point: point.number for point in points}


def _rest(seconds: float, time: Time, wishes: Wishes) -> None:
    """Do not capture for so long; the end, and a wish to go on, end it early."""
    until = time.monotonic() + seconds
    while not wishes.ending and (left := until - time.monotonic()) > 0:
        wish = wishes.wait(left)
        if isinstance(wish, Resume):
            wish.reply({})
            return
        if isinstance(wish, Pause):
            until = time.monotonic() + wish.seconds
            wish.reply({"paused": wish.seconds})
        elif wish is not None:
            _refuse(wish)


def _refuse(wish: Wish) -> None:
    if isinstance(wish, Ship):
        wish.reply({})  # there is nothing that is not in the repository, or in the way there
    elif isinstance(wish, Mark):
        wish.reply({"error": "capture does not stand just now"})


def _not_begun(name: str, order: CaptureOrder, error: Exception) -> Failure:
    return Failed(
        f"{name} cannot be captured: {error}.",
        on=order.hypervisor.place,
        safe="Nothing of it is left in the VM, which runs on as before.",
    )
