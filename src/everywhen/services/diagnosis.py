# SPDX-License-Identifier: AGPL-3.0-or-later
"""What can be protected in a hypervisor, what cannot, why, and what to do: judged from what its monitor told.

The facts behind each judgement: docs/capture.md. A disk is `no` where capture would miss writes or endanger the guest, also
where the way round that is not built yet.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from everywhen.block.target import TargetError
from everywhen.capture.answers import Drive
from everywhen.capture.image_beside import BESIDE
from everywhen.capture.survey import DiskSeen, Survey, name_of
from everywhen.services.unfinished import restoring

TRIED = (7, 2)
"""The oldest QEMU that capture was tried with."""


class Verdict(StrEnum):
    """Whether it can be protected, or is as it must be."""

    YES = "yes"
    CARE = "with care"
    NO = "no"
    LEFT_OUT = "left out"


@dataclass(frozen=True, slots=True)
class Reason:
    """What stands behind a verdict, in one sentence, and what to do about it; `busy`: somebody else is at it, for a while."""

    verdict: Verdict
    why: str
    do: str = ""
    busy: bool = False


@dataclass(frozen=True, slots=True)
class DiskJudged:
    """A disk, drive or device. `size` in bytes, None where QEMU does not know it; `first_copy`: how it would be read;
    `after_qemu`: how its changes would be found after QEMU's end, and whether it could keep a persistent bitmap, which is not
    used yet; `is_written`: whether a guest can change it; `iothread`: whether one serves it."""

    device: str
    kind: str
    size: int | None
    format: str
    node: str
    filename: str
    first_copy: str
    after_qemu: str
    reasons: tuple[Reason, ...]
    base: Verdict = Verdict.YES
    is_written: bool = True
    iothread: bool = False

    @property
    def verdict(self) -> Verdict:
        """The worst of all."""
        return worst((reason.verdict for reason in self.reasons), self.base)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at, on this host or in the hypervisor."""

    name: str
    verdict: Verdict
    words: str
    do: str = ""


def worst(verdicts: Iterable[Verdict], otherwise: Verdict = Verdict.YES) -> Verdict:
    """`no` before `with care` before all others."""
    found = set(verdicts)
    return next((verdict for verdict in (Verdict.NO, Verdict.CARE) if verdict in found), otherwise)


_PASSED_THROUGH = Reason(
    Verdict.NO,
    "a LUN that is passed through: the guest's commands go to the host's device, past what QEMU could send on",
    "Attach it as an ordinary disk (scsi-hd; in libvirt device='disk').",
)
_PAST_QEMU = {
    "vhost-user-blk": Reason(
        Verdict.NO,
        "a vhost-user disk: its writes go to another process, QEMU does not see them",
        "If a qemu-storage-daemon serves it, protect it there: --qmp with that daemon's monitor.",
    ),
    "vhost-user-scsi": Reason(Verdict.NO, "vhost-user disks: their writes go to another process, QEMU does not see them"),
    "vhost-scsi": Reason(Verdict.NO, "vhost-scsi disks: their writes go to the host's kernel, QEMU does not see them"),
    "hostdev-scsi": _PASSED_THROUGH,
    "vfio-": Reason(Verdict.CARE, "a device of the host, passed through: if it is a disk or a controller, QEMU sees no write"),
    "vhost-vdpa": Reason(Verdict.CARE, "a device of the host, passed through: if it is a disk, QEMU does not see its writes"),
    "usb-host": Reason(
        Verdict.CARE, "a USB device of the host, passed through: if it is a drive, QEMU sees none of its writes"
    ),
    "nvdimm": Reason(Verdict.CARE, "memory that may be backed by a file of the host: QEMU does not see writes to it"),
    "virtio-pmem": Reason(Verdict.CARE, "memory that is backed by a file of the host: QEMU does not see writes to it"),
    "vhost-user-fs": Reason(Verdict.CARE, "a folder of the host, not a disk", "Back it up on the host."),
    "virtio-9p": Reason(Verdict.CARE, "a folder of the host, not a disk", "Back it up on the host."),
}
"""What guests write to past QEMU's block layer, by how the device's kind begins."""

_SHARED = Reason(
    Verdict.NO,
    "it may be written to by others at the same time (share-rw), and their writes are not seen here",
    "If nobody else writes to it: attach it without share-rw (in libvirt without <shareable/>).",
)
_TRANSIENT = Reason(Verdict.NO, "it is transient: what is written to it is thrown away when the VM ends")
_PUSHED = Reason(
    Verdict.CARE,
    "an iothread serves it, and it is no raw image or device of this host: after every loss of capture all of it is sent again",
    "To have only its changes read, and for points at intervals: run it without an iothread, or from a raw image.",
)
_READ_BESIDE = Reason(
    Verdict.YES,
    "an iothread serves it: QEMU cannot export it without danger, so its first copy is read from the image beside QEMU",
)
_FLASH = Reason(
    Verdict.LEFT_OUT,
    "flash memory of the firmware (UEFI's variables), no disk: no point has it",
    "Keep a copy of its file; through libvirt it is among the VM's files.",
)
_FUSE = Reason(
    Verdict.NO,
    "a FUSE export that can be written to: it may resize the disk, and QEMU lets no tap stand on such a disk",
    "Export it over NBD or as vhost-user-blk instead; or back its image up while nobody writes: everywhen backup",
)
_OTHERS_SNAPSHOT = Reason(
    Verdict.CARE,
    "another tool reads a snapshot of it (a copy-before-write filter is on it)",
    "Let that tool end first.",
)


def judge_disk(seen: DiskSeen, survey: Survey, state: Path) -> DiskJudged:
    """A disk that a guest can write to. `state`: this host's state folder."""
    disk = seen.disk
    reasons = [
        Reason(
            Verdict.NO,
            f'another tool\'s block job "{job.name}" ({job.kind}) is on it',
            "Begin when it has ended.",
            busy=True,
        )
        for job in seen.jobs
    ]
    reasons += _half_restored(seen.filename, state)
    if seen.passed_through:
        reasons.append(_PASSED_THROUGH)
    if seen.beside:
        reasons.append(Reason(Verdict.NO, f"the same disk is attached twice, also as {', '.join(seen.beside)}"))
    if seen.shared:
        reasons.append(_SHARED)
    if seen.transient:
        reasons.append(_TRANSIENT)
    if not disk.path and any(export.kind == "fuse" and export.name == disk.device for export in survey.exports):
        reasons.append(_FUSE)
    servers = [export.name for export in survey.exports if export.kind == "nbd"] if disk.path else []
    if servers:
        words = f"its first copy is read through an NBD server that another tool has begun (export {', '.join(servers)}), and"
        reasons.append(Reason(Verdict.CARE, f"{words} fails if that tool stops it", "Begin when that export is gone."))
    if "copy-before-write" in seen.drivers:
        reasons.append(_OTHERS_SNAPSHOT)
    beside = seen.drivers in BESIDE
    if disk.iothread:
        reasons.append(_READ_BESIDE if beside else _PUSHED)
    bitmap = seen.compat is not None and seen.compat != "0.10"
    return DiskJudged(
        device=disk.device,
        kind=seen.kind,
        size=disk.size or None,
        format=_format(seen),
        node=disk.node,
        filename=seen.filename,
        first_copy="read-only export" if not disk.iothread else "image read beside QEMU" if beside else "pushed by its tap",
        after_qemu="by hash; bitmap possible" if bitmap else "by hash",
        reasons=tuple(reasons),
        iothread=disk.iothread,
    )


def _half_restored(path: str, state: Path) -> list[Reason]:
    """A moment of such a disk would be none that its VM was ever in (I-5)."""
    try:
        mark = restoring(path, state)
    except TargetError as error:
        return [Reason(Verdict.NO, str(error).rstrip("."))]
    if mark is None:
        return []
    why = f"{path} is a mixture of two moments: a restore of {mark.source} to it has not ended"
    return [Reason(Verdict.NO, why, f"Shut the VM down, and go on: {mark.command}")]


def judge(survey: Survey, state: Path) -> list[DiskJudged]:
    """All that a guest has, or could have written to. `state`: this host's state folder."""
    found = [judge_disk(seen, survey, state) for seen in survey.disks]
    found += [_left_out(drive, survey) for drive in survey.left_out]
    found += [
        DiskJudged(name_of(one), "", None, "", one.node or "", "", "", "", (_FLASH,), _FLASH.verdict) for one in survey.flash
    ]
    for name, kind in survey.devices.items():
        reason = next((reason for beginning, reason in _PAST_QEMU.items() if kind.startswith(beginning)), None)
        if reason is not None:
            found.append(DiskJudged(name, kind, None, "", "", "", "", "", (reason,)))
    return found


def judge_hypervisor(survey: Survey) -> list[Check]:
    """The program itself, and what of ours is in it."""
    words = ".".join(map(str, survey.version))
    if survey.version[:2] < TRIED:
        checks = [Check("QEMU", Verdict.CARE, f"{words}: capture was never tried with one before {TRIED[0]}.{TRIED[1]}")]
    else:
        checks = [Check("QEMU", Verdict.YES, words)]
    if survey.missing:
        missing = ", ".join(survey.missing)
        checks.append(Check("commands", Verdict.NO, f"this QEMU cannot {missing}", "Update QEMU to 7.2 or newer."))
    if survey.ours:
        words = "a capture of ours runs, or was killed: the next everywhen protect takes away what it left"
        checks.append(Check("leftovers", Verdict.CARE, words))
    return checks


_LET = {
    "apparmor": 'If not, dmesg says so: add "/var/lib/everywhen/*/sockets/** rw," to '
    "/etc/apparmor.d/local/abstractions/libvirt-qemu (Debian, Ubuntu), and start the VM anew."
}


def judge_domain(*, running: bool, confined: Iterable[str], barred: tuple[int, Path] | None) -> list[Check]:
    """What libvirt tells about a domain as a whole.

    `confined`: security modules that its QEMU is under; `barred`: which user that is, and a folder on the way to our sockets
    that it may not enter.
    """
    checks = []
    if barred is not None:
        words = f"QEMU runs as user {barred[0]} and may not pass through {barred[1]} to our sockets"
        checks.append(Check("sockets", Verdict.NO, words, "Set EVERYWHEN_STATE to a folder that all may enter."))
    if not running:
        words = "the VM is shut off: everywhen protect reads its images, and captures every write from its start on"
        checks.append(Check("state", Verdict.YES, words))
    for module in confined:
        words = f"QEMU is confined by {module}, with which capture was never tried: it may not let QEMU use our sockets"
        checks.append(Check(module, Verdict.CARE, words, _LET.get(module, "")))
    return checks


def _left_out(drive: Drive, survey: Survey) -> DiskJudged:
    name = name_of(drive)
    kind = survey.devices.get(name, "")
    why = "it is empty" if drive.node is None else "its medium is read-only: a guest cannot change it"
    reason = Reason(Verdict.LEFT_OUT, f"a CD-ROM drive, and {why}" if kind.endswith("-cd") else why)
    return DiskJudged(name, kind, None, "", drive.node or "", "", "", "", (reason,), Verdict.LEFT_OUT, is_written=False)


def _format(seen: DiskSeen) -> str:
    """`qcow2 v3 on file`: the format, and what it lies on; filters in between are left out."""
    first = next((driver for driver in seen.drivers if driver not in _FILTERS), "?")
    version = "" if first != "qcow2" or seen.compat is None else " v2" if seen.compat == "0.10" else " v3"
    last = seen.drivers[-1] if seen.drivers else first
    return f"{first}{version}" if last == first else f"{first}{version} on {last}"


_FILTERS = ("mirror_top", "commit_top", "backup-top", "copy-before-write", "copy-on-read", "throttle", "preallocate")
