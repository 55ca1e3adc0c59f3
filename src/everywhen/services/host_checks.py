# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether this host is fit for capture: the folder of spool and sockets, the clock, the repository. Nothing is written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from everywhen.capture.spool_room import reserve
from everywhen.repository.keys.keys import read_superblock
from everywhen.services.ages import SECOND, span
from everywhen.services.diagnosis import Check, Verdict
from everywhen.services.keep.brakes import CLOCK_TOLERANCE
from everywhen.services.protect.socket_names import LONGEST, too_long
from everywhen.services.sizes import size
from everywhen.services.times import rfc3339
from everywhen.services.translation import failing
from everywhen.storage.base import ObjectStore

_LITTLE = 0.05


def check_folder(folder: Path, images: Iterable[str]) -> list[Check]:
    """The folder of spool and sockets, which need not be there yet. `images`: files of the disks that are to be captured."""
    there = _nearest(folder)
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        words = f"{there} is no folder" if not there.is_dir() else f"{there} cannot be written to by this user"
        return [Check("folder", Verdict.NO, words, "Set EVERYWHEN_STATE to another one, or run this as another user.")]
    if (longest := too_long(folder.absolute())) is not None:
        words = f"{longest} is longer than {LONGEST} bytes, which no socket's name may be"
        return [Check("folder", Verdict.NO, words, "Set EVERYWHEN_STATE to a shorter one.")]
    usage = shutil.disk_usage(there)
    words = f"{folder}: {size(usage.free)} of {size(usage.total)} free"
    left = reserve(usage.total)
    if usage.free <= left:
        words += f", and a spool leaves {size(left)} of that free for others: nothing would be captured"
        checks = [Check("folder", Verdict.NO, words, "Set EVERYWHEN_STATE to another one, or make room there.")]
    elif usage.free < usage.total * _LITTLE:
        words += "; when the spool is full, capture pauses and the guest goes on"
        checks = [
            Check("folder", Verdict.CARE, words, "Set EVERYWHEN_STATE to another one, or protect with a lower --spool-limit.")
        ]
    else:
        checks = [Check("folder", Verdict.YES, words)]
    beside = _on_device(there, images)
    if beside:
        words = f"the spool lies on the same file system as {', '.join(beside)}: each write is done twice there, and "
        words += f"while its repository is away the spool takes of what the images may need, but leaves {size(left)} free"
        checks.append(Check("spool", Verdict.CARE, words, "A folder on another disk is faster, and takes no room from them."))
    return checks


def check_repository(store: ObjectStore, images: Iterable[str]) -> tuple[list[Check], int]:
    """Whether it can be reached and has room; and when it was made (ns since 1970). Needs no passphrase. Raises Failure."""
    with failing(store.url):
        superblock = read_superblock(store)
        space = store.space()
    created = int(datetime.fromisoformat(superblock.created).timestamp()) * SECOND
    words = store.url if space is None else f"{store.url}: {size(space.free)} of {size(space.total)} free"
    if space is not None and space.free < space.total * _LITTLE:
        checks = [Check("repository", Verdict.CARE, words, "everywhen prune, then everywhen gc")]
    else:
        checks = [Check("repository", Verdict.YES, words)]
    beside = _on_device(Path(store.url), images) if Path(store.url).exists() else []
    if beside:
        words = (
            f"the repository lies on the same file system as {', '.join(beside)}: if that fails, VM and backup fail together"
        )
        checks.append(Check("place", Verdict.CARE, words, "Keep a second copy elsewhere, or choose another place."))
    return checks, created


def check_clock(now_ns: int, not_before_ns: int) -> Check:
    """Whether the clock is ahead of what was made in the past. Moments have its times."""
    behind = not_before_ns - now_ns
    if behind > CLOCK_TOLERANCE:
        words = f"it is {rfc3339(now_ns)} here, which is {span(behind)} before what was made on this machine's time"
        return Check("clock", Verdict.NO, words, "Set the clock, and keep it right (chrony, systemd-timesyncd).")
    return Check("clock", Verdict.YES, rfc3339(now_ns))


def _nearest(folder: Path) -> Path:
    """The folder, or the first one above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))


def _on_device(folder: Path, images: Iterable[str]) -> list[str]:
    """Those of the images that lie on the folder's file system. Relative names are relative to QEMU's folder, not ours."""
    device = folder.stat().st_dev
    files = {image for image in images if os.path.isabs(image) and os.path.isfile(image)}
    return sorted(image for image in files if os.stat(image).st_dev == device)
