# SPDX-License-Identifier: AGPL-3.0-or-later
"""Errors of the layers below as failures that a user can act on. One place, so that one error has one meaning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from everywhen.block.device import DeviceError
from everywhen.block.image_errors import ImageDamaged, ImageInUse, ImageMissing, ImageNotAllowed
from everywhen.block.target import TargetBusy, TargetFull, TargetNotWritable
from everywhen.formats.errors import FormatError, UnsupportedVersion
from everywhen.guest.errors import GuestError, NoSuchPath, WrongKind
from everywhen.repository.errors import (
    Busy,
    CacheFull,
    CacheRefused,
    Damaged,
    DamagedChunk,
    Fenced,
    LowOnSpace,
    NoSuchPoint,
    NotARepository,
    RepositoryError,
)
from everywhen.repository.index.runs import CacheDamaged
from everywhen.repository.keys import keyerrors
from everywhen.services import failures
from everywhen.services.failures import Failure, from_storage, from_system
from everywhen.storage.base import StorageError

_MAKE_ROOM = "everywhen prune, then everywhen gc"
_WHAT_IS_LOST = "everywhen verify --read-data"
_ELSEWHERE = "Caches may lie anywhere, and be deleted at any time: EVERYWHEN_CACHE=FOLDER"

_REPOSITORY: tuple[tuple[type[RepositoryError], type[Failure], tuple[str, ...]], ...] = (
    (keyerrors.WrongPassphrase, failures.NotAllowed, ("Lost it? everywhen key change --recovery-key",)),
    (keyerrors.UnusablePassphrase, failures.WrongUsage, ()),
    (keyerrors.NotEncrypted, failures.WrongUsage, ()),
    (keyerrors.NoSuchSlot, failures.NotFound, ("everywhen key list",)),
    (keyerrors.AmbiguousSlot, failures.WrongUsage, ("everywhen key list",)),
    (keyerrors.LastSlot, failures.NotAllowed, ()),
    (keyerrors.NoKeySlot, failures.Damage, ()),  # verify cannot open it, either
    (keyerrors.NoSuperblock, failures.Damage, ()),
    (keyerrors.KeysChanged, failures.Busy, ("everywhen key list",)),
    (keyerrors.RepositoryExists, failures.Failed, ()),
    (NotARepository, failures.NotFound, ()),
    (NoSuchPoint, failures.NotFound, ("everywhen points",)),
    (DamagedChunk, failures.Damage, (_WHAT_IS_LOST,)),
    (Damaged, failures.Damage, ("everywhen verify",)),
    (Fenced, failures.Failed, ()),
    (Busy, failures.Busy, ()),
    (LowOnSpace, failures.NoSpace, (_MAKE_ROOM,)),
    (CacheFull, failures.NoSpace, (_ELSEWHERE,)),
    (CacheRefused, failures.NotAllowed, (_ELSEWHERE,)),
)

_DEVICE: tuple[tuple[type[DeviceError], type[Failure]], ...] = (
    (ImageInUse, failures.Busy),
    (ImageMissing, failures.NotFound),
    (ImageNotAllowed, failures.NotAllowed),
    (ImageDamaged, failures.Damage),
    (TargetBusy, failures.Busy),
    (TargetFull, failures.NoSpace),
    (TargetNotWritable, failures.NotAllowed),
)


def as_failure(error: Exception, *, url: str) -> Failure | None:
    """What `error` is to a user; None for one that is a fault of the program. `url` names the repository."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, StorageError):
        of_store = from_storage(error, url=url)
        if isinstance(of_store, failures.NoSpace):
            of_store.do.append(_MAKE_ROOM)  # no advice for other disks that are full: there nothing of ours can go
        return of_store
    if isinstance(error, RepositoryError):
        for kind, failure, do in _REPOSITORY:
            if isinstance(error, kind):
                return failure(str(error), on=url, do=do)
        return failures.Failed(str(error), on=url)
    if isinstance(error, DeviceError):
        for device_kind, failure in _DEVICE:
            if isinstance(error, device_kind):
                return failure(str(error))
        return failures.Failed(str(error))
    if isinstance(error, GuestError):
        return _of_guest(error)
    if isinstance(error, UnsupportedVersion):
        return failures.Failed(f"{url}: {error}", on=url, safe="Nothing was touched.")
    if isinstance(error, FormatError):
        return failures.Damage(f"{url}: {error}", on=url, do=["everywhen verify"])
    if isinstance(error, CacheDamaged):
        return failures.Failed(f"The local cache of {url} was damaged: {error}", on=url, do=["Run the command again."])
    return from_system(error) if isinstance(error, OSError) else None


def _of_guest(error: GuestError) -> Failure:
    if isinstance(error, NoSuchPath):
        return failures.NotFound(f"{error}.")
    if isinstance(error, WrongKind):
        return failures.WrongUsage(f"{error}.")
    return failures.Failed(f"{error}.", safe="The disk itself can be opened as a device: everywhen serve nbd")


@contextmanager
def failing(url: str) -> Iterator[None]:
    """Raise errors of the layers below as failures."""
    try:
        yield
    except Exception as error:
        failure = as_failure(error, url=url)
        if failure is None or failure is error:
            raise
        for note in getattr(error, "__notes__", ()):
            failure.add_note(note)  # what a target left behind
        raise failure from error
