# SPDX-License-Identifier: AGPL-3.0-or-later
"""A running VM under capture, for whoever consumes its spool: stretch after stretch, until the end is wanted."""

from __future__ import annotations

import re
from typing import NoReturn

from everywhen.capture.qmp import CommandFailed, MonitorBusy, MonitorError, VmOff, VmUnknown
from everywhen.capture.tap import TapEnded, TapFailed
from everywhen.formats.fields import Json
from everywhen.formats.point import Gap, RecoveryPoint
from everywhen.services.failures import Busy, Failed, Failure, NotAllowed, NotFound, WrongUsage
from everywhen.services.naming import is_name
from everywhen.services.protect import unfinished_copy
from everywhen.services.protect.absence import Absence, rest
from everywhen.services.protect.capture_order import (
    ENDS,
    REPOSITORY_FAILS,
    CaptureLost,
    CaptureOrder,
    DisksChanged,
    Paused,
    Stopped,
    Stretch,
    Time,
    Told,
)
from everywhen.services.protect.capture_states import NOT_RUNNING
from everywhen.services.protect.capturing import Capture
from everywhen.services.protect.choosing import CannotCapture
from everywhen.services.protect.interval import Interval
from everywhen.services.protect.lineage import Displaced, stand_aside
from everywhen.services.protect.recipient import Recipient
from everywhen.services.protect.wishes import Wishes
from everywhen.services.protect.withdrawal import withdraw

STARTED = "the VM was started, and its disks were being compared"
_TRIES = 3
"""To begin, where taps were attached and lost: a busy machine may need more than one."""
_BACK_OFF_S, _LONGEST_BACK_OFF_S, _LASTED_S = 1.0, 300.0, 600.0


def protect(
    recipient: Recipient, name: str, order: CaptureOrder, told: Told, time: Time, wishes: Wishes
) -> RecoveryPoint | None:
    """Capture until the end is wanted, again and again if it is lost; gives the newest point.

    Raises Failure where it cannot be begun at all: no such monitor, nothing to capture, a disk that cannot be captured.
    """
    if not is_name(name):
        raise WrongUsage(f'"{name}" is not a name for a VM: use a-z, 0-9, dot, dash and underscore.', on=name)
    newest, missing = _captured(recipient, name, order, told, time, wishes)
    if missing:
        told.left_behind(f"the last recovery point could not be made ({missing})")
    if (end := wishes.end_wish) is not None:
        end.reply(_withdrawn(order) | ({"not_in_a_point": missing} if missing else {}))
    return newest


def _captured(
    recipient: Recipient, name: str, order: CaptureOrder, told: Told, time: Time, wishes: Wishes
) -> tuple[RecoveryPoint | None, str]:
    """The newest point; and why what was written at the end is in none, '' where it is."""
    back_off, stood, tries, epoch = _BACK_OFF_S, False, 0, 0
    newest: RecoveryPoint | None = None
    gap: Gap | None = None
    complete: RecoveryPoint | None = None
    seen: tuple[object, ...] = ()
    while True:
        capture = _stretch(recipient, order, told, time, wishes)
        began, missing = time.monotonic(), ""
        try:
            vm, parent, known, left_ns = recipient.beginning(name, order, told)
            recipient.demand_turn(vm.vm, epoch)
            gap = _gap_after(parent, gap, left_ns)
            capture.run(vm, parent, known, gap)
        except Stopped:
            return capture.parent, ""
        except Paused as pause:
            why, rest_s, stood = "paused", pause.wish.seconds, True
        except VmOff as off:
            if not (stood or order.waits or _was_captured(capture.parent)):
                _refuse(name, order, off)
            if capture.stood:  # between two points at intervals
                gap = Gap(capture.covered_ns, str(off))
            absence = Absence(recipient, name, order, told, time, wishes, seen, complete)
            absence.sit_out(str(off))
            newest = absence.complete or capture.parent or newest
            if wishes.ending:
                return newest, ""
            if absence.complete is not None:
                gap = Gap(absence.until_ns, STARTED)
            # Nobody may be there any more to hear that it cannot begin: from now on it is tried again.
            complete, back_off, stood, epoch = None, _BACK_OFF_S, True, 0
            continue
        except Displaced as displaced:
            stand_aside(displaced, order, told, wishes)
            newest, gap, stood, epoch = capture.parent or newest, None, True, 0
            if wishes.ending:
                return newest, ""
            continue
        except ENDS as error:
            why, stood, tries = str(error), stood or capture.stood, tries + 1
            if not stood and not (isinstance(error, CaptureLost | TapEnded) and tries < _TRIES):
                _refuse(name, order, error)
            if not wishes.ending:
                told.lost(why)
            back_off = _back_off(back_off, error, lasted_s=time.monotonic() - began)
            # A VM that ended in order is looked after at once: what happens to its images meanwhile nobody would see.
            missing, rest_s = ("", 0.0) if capture.complete else (why, back_off)
        else:
            return capture.parent, ""
        if capture.stood:
            gap = Gap(capture.covered_ns, why)
            complete, seen = (capture.parent if capture.complete else None), capture.images
        newest, epoch = capture.parent or newest, capture.epoch or epoch  # 0: lost before it had claimed any
        rest(rest_s, time, wishes, told)
        if wishes.ending:
            return newest, missing


def _gap_after(parent: RecoveryPoint | None, gap: Gap | None, left_ns: int) -> Gap | None:
    """What is not captured when a stretch begins after `parent`; `gap`: what is known of it; `left_ns`: until when what other
    runs left has every write."""
    if parent is None or parent.journal is None:
        return gap  # a backup that lies in a gap does not end it: before it, too, nothing was captured
    gap = gap or Gap(left_ns, NOT_RUNNING)
    return Gap(max(gap.from_ns, parent.time_ns), gap.why)


def _back_off(last_s: float, error: Exception, *, lasted_s: float) -> float:
    """Seconds to wait: a capture that lasted, or only has to have other disks, has earned a quick try."""
    quick = lasted_s > _LASTED_S or isinstance(error, DisksChanged)
    return _BACK_OFF_S if quick else min(2 * last_s, _LONGEST_BACK_OFF_S)


def _stretch(recipient: Recipient, order: CaptureOrder, told: Told, time: Time, wishes: Wishes) -> Stretch:
    """Of every write, or of points alone."""
    if order.interval_s:
        return Interval(recipient, order, told, time, wishes)
    return Capture(recipient, order, told, time, wishes)


def _was_captured(point: RecoveryPoint | None) -> bool:
    """Whether the VM was ever found where it is said to be."""
    return point is not None and point.journal is not None


def _withdrawn(order: CaptureOrder) -> Json:
    """Take away what a capture that has ended leaves with its VM, and say what became of that."""
    try:
        taken_off = withdraw(order.hypervisor, order.sink)
    except VmOff:
        taken_off = 0
    except ENDS as error:
        return {"error": f"the VM cannot be reached, and may still have bitmaps of ours ({error})"}
    unfinished_copy.forget(order.folder)
    return {"taken_off": taken_off}


def _ways(order: CaptureOrder, error: Exception) -> list[str]:
    """What to do where QEMU says that it does not come to our sockets, or we not to its monitor."""
    if isinstance(error, VmOff):
        return ["Is the VM on, and is this its monitor? Once it was captured, its start is waited for."]
    if isinstance(error, VmUnknown):
        return ["Which VMs there are: everywhen doctor"]
    if isinstance(error, MonitorError) and "Permission denied" in str(error):
        return ["Its monitor belongs to another user: try with sudo."]
    if isinstance(error, MonitorBusy):
        return ["A monitor serves one client at a time: does another program use it? Then give QEMU a second -qmp for this."]
    if isinstance(error, MonitorError):
        return ["Does it run, and may this user use it? everywhen doctor looks at no more than that."]
    if isinstance(error, TapFailed | CommandFailed) and re.search("Permission denied|No such file", str(error)):
        sockets = order.sockets
        return [
            f"QEMU must be able to use the sockets in {sockets}.",
            "Does a security module confine it (AppArmor, SELinux)? dmesg says so; let its profile read and write there.",
            "Does it run in a container, or see another file system? Then set EVERYWHEN_STATE to a folder that both see.",
        ]
    return []


def _refuse(name: str, order: CaptureOrder, error: Exception) -> NoReturn:
    """Say that capture cannot be begun at all."""
    if isinstance(error, REPOSITORY_FAILS):
        raise error  # it says for itself what is wrong with the repository
    kind: type[Failure] = Failed
    if isinstance(error, VmUnknown):
        kind = NotFound
    elif isinstance(error, MonitorError) and "Permission denied" in str(error):
        kind = NotAllowed
    elif isinstance(error, CannotCapture) and error.busy:
        kind = Busy
    bitmaps = " but bitmaps, by which its copy goes on" if unfinished_copy.is_kept(order.folder) else ""
    raise kind(
        f"{name} cannot be captured: {error}.",
        on=order.hypervisor.place,
        safe=f"Nothing of it is left in the VM{bitmaps}, which runs on as before.",
        do=getattr(error, "do", ()) or _ways(order, error),
    ) from error
