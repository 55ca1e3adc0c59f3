# SPDX-License-Identifier: AGPL-3.0-or-later
"""Owner, mode, times and extended attributes of a guest's file, given to its copy as far as that is allowed here."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from everywhen.guest.tree import Entry, Kind

_SET_ID = 0o6000
_WITHOUT_MODE = {Kind.FOLDER: 0o777}
_WITHOUT_MODE_OTHERS = 0o666


class Restoring:
    """Gives copies what belongs to them; counts what they could not be given."""

    def __init__(self, umask: int) -> None:
        """`umask` is for what has no mode in the guest."""
        self._umask = umask
        self._root = os.geteuid() == 0
        self.lost: Counter[str] = Counter()

    def opened(self, descriptor: int, entry: Entry, attributes: Mapping[str, bytes]) -> None:
        """A file or folder that is open. The times come last: all else changes them."""
        owned = self._owner(descriptor, entry)
        for name, value in attributes.items():
            with self._counted(name):
                os.setxattr(descriptor, name.encode("utf-8", "surrogateescape"), value)
        mode = _WITHOUT_MODE.get(entry.kind, _WITHOUT_MODE_OTHERS) & ~self._umask if entry.mode is None else entry.mode
        if mode & _SET_ID and not owned:
            self.lost["set-user-id or set-group-id"] += 1
            mode &= ~_SET_ID
        with self._counted("mode"):
            os.fchmod(descriptor, mode)
        if (times := _times(entry)) is not None:
            with self._counted("times"):
                os.utime(descriptor, ns=times)
                self._kept(os.fstat(descriptor), times)

    def link(self, folder: int, name: bytes, entry: Entry) -> None:
        """A symbolic link in an open folder; it has no mode."""
        if self._root and entry.uid is not None and entry.gid is not None:
            with self._counted("owner"):
                os.chown(name, entry.uid, entry.gid, dir_fd=folder, follow_symlinks=False)
        if (times := _times(entry)) is not None:
            with self._counted("times"):
                os.utime(name, ns=times, dir_fd=folder, follow_symlinks=False)
                self._kept(os.stat(name, dir_fd=folder, follow_symlinks=False), times)

    def _owner(self, descriptor: int, entry: Entry) -> bool:
        """Whether the copy belongs to whom it belonged."""
        if entry.uid is None or entry.gid is None:
            return False
        if not self._root:
            own = os.fstat(descriptor)
            if (own.st_uid, own.st_gid) == (entry.uid, entry.gid):
                return True
            self.lost["owner"] += 1
            return False
        before = self.lost.total()
        with self._counted("owner"):
            os.fchown(descriptor, entry.uid, entry.gid)
        return self.lost.total() == before

    def _kept(self, status: os.stat_result, times: tuple[int, int]) -> None:
        """File systems take other times than they can hold, and say nothing."""
        if status.st_mtime_ns != times[1]:
            self.lost["times"] += 1

    @contextmanager
    def _counted(self, what: str) -> Iterator[None]:
        """What the system does not take here does not keep the rest from being copied."""
        try:
            yield
        except (OSError, OverflowError, ValueError):
            self.lost[what] += 1


def _times(entry: Entry) -> tuple[int, int] | None:
    """Of the last access and the last change of the content."""
    modified = entry.times.modified
    if modified is None:
        return None
    return entry.times.accessed if entry.times.accessed is not None else modified, modified
