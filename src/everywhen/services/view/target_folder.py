# SPDX-License-Identifier: AGPL-3.0-or-later
"""A folder into which a guest's files are written, and out of which none of them leads.

Every folder is held open, and what is in it is made by its name alone, relative to that: no path is ever put together, no
link followed, whatever names say and whatever somebody else puts there meanwhile (openat(2), O_NOFOLLOW). Names are bytes,
as the guest has them. Nothing that is there already is changed but what `overwrite` allows: a file or link is replaced by
another one when that is whole. A file has another name, `.everywhen-…`, until it is whole: what was half written when we were
killed is never taken for it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from os import O_CLOEXEC, O_DIRECTORY, O_NOFOLLOW  # not there on Windows: then this cannot be loaded
from types import TracebackType
from typing import Self, TypeVar

from everywhen.guest.errors import GuestDamaged
from everywhen.guest.names import name_error

_FOLDER = os.O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC
_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | O_NOFOLLOW | O_CLOEXEC
_PRIVATE_FILE, _PRIVATE_FOLDER = 0o600, 0o700
"""Until owner and mode are the guest's, nobody else looks in."""

_NO_SECOND_NAMES = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
"""What file systems without hard links say, as FAT."""

_T = TypeVar("_T")


def name_bytes(name: str) -> bytes:
    """The name of a guest's file here. Raises GuestDamaged for what is a path, or cannot be written as a name."""
    wrong = name_error(name)
    if wrong:
        raise wrong
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise GuestDamaged(f"{name!r}: half a character of UTF-16; no file here can have this name") from error


class NewFile:
    """A file that is being written, under a name `beside` its own; when it is not completed it is removed."""

    def __init__(self, folder: TargetFolder, name: bytes, beside: bytes, descriptor: int) -> None:
        self._folder = folder
        self._name = name
        self._beside = beside
        self.descriptor = descriptor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self.descriptor)
        if kind is not None:
            with suppress(OSError):  # what was the matter is being told
                os.unlink(self._beside, dir_fd=self._folder.descriptor)

    def complete(self) -> None:
        """Put it where it belongs. Raises OSError."""
        self._folder.name(self._beside, self._name)


class TargetFolder:
    """A folder that is open. Raises OSError where the system does, GuestDamaged for names that are none."""

    def __init__(self, descriptor: int, *, overwrite: bool) -> None:
        """The descriptor is this object's from now on: `close` it."""
        self.descriptor = descriptor
        self._overwrite = overwrite

    @classmethod
    def at(cls, path: str, *, overwrite: bool) -> TargetFolder:
        """A folder that the user has named."""
        return cls(os.open(path, os.O_RDONLY | O_DIRECTORY | O_CLOEXEC), overwrite=overwrite)

    def close(self) -> None:
        """Let go of it."""
        os.close(self.descriptor)

    def folder(self, name: bytes) -> tuple[TargetFolder, bool]:
        """A folder in this one, made if it is not there; whether it was made."""
        made = True
        try:
            os.mkdir(name, _PRIVATE_FOLDER, dir_fd=self.descriptor)
        except FileExistsError:
            made = False
        return self._entered(name), made

    def within(self, names: tuple[bytes, ...]) -> TargetFolder:
        """A folder below this one that was made before."""
        found = TargetFolder(os.dup(self.descriptor), overwrite=self._overwrite)
        for name in names:
            try:
                inner = found._entered(name)
            finally:
                found.close()
            found = inner
        return found

    def file(self, name: bytes) -> NewFile:
        """A new file. Raises FileExistsError, too."""
        if self._kind(name) and not self._overwrite:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fsdecode(name))
        return NewFile(self, name, *self._beside(lambda beside: os.open(beside, _FILE, _PRIVATE_FILE, dir_fd=self.descriptor)))

    def link(self, name: bytes, target: bytes) -> None:
        """A symbolic link, wherever it leads."""
        beside, _ = self._made(name, lambda name: os.symlink(target, name, dir_fd=self.descriptor))
        if beside is not None:
            self.put(beside, name)

    def second_name(self, name: bytes, folder: TargetFolder, first: bytes) -> None:
        """Another name for a file in `folder`."""
        beside, _ = self._made(
            name,
            lambda name: os.link(first, name, src_dir_fd=folder.descriptor, dst_dir_fd=self.descriptor, follow_symlinks=False),
        )
        if beside is not None:
            self.put(beside, name)

    def name(self, beside: bytes, name: bytes) -> None:
        """Give what was made under another name its own. Raises FileExistsError where that is taken, and not to be replaced."""
        if self._overwrite:
            self.put(beside, name)
            return
        here = self.descriptor
        try:
            os.link(beside, name, src_dir_fd=here, dst_dir_fd=here, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_SECOND_NAMES:
                raise
        else:
            os.unlink(beside, dir_fd=here)
            return
        if self._kind(name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fsdecode(name))
        os.rename(beside, name, src_dir_fd=here, dst_dir_fd=here)

    def put(self, beside: bytes, name: bytes) -> None:
        """Have what was made under another name replace what is there."""
        try:
            if self._kind(name) == stat.S_IFDIR:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fsdecode(name))
            os.rename(beside, name, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)
        finally:
            # Where it failed; and where both are one file already: then rename(2) leaves both.
            with suppress(FileNotFoundError):
                os.unlink(beside, dir_fd=self.descriptor)

    def _made(self, name: bytes, make: Callable[[bytes], _T]) -> tuple[bytes | None, _T]:
        """Make something; if it has to replace what is there, under another name, which is told."""
        try:
            return None, make(name)
        except FileExistsError:
            if not self._overwrite:
                raise
        return self._beside(make)

    def _beside(self, make: Callable[[bytes], _T]) -> tuple[bytes, _T]:
        """Make something under a name that nothing has, which is told."""
        number = 0
        while True:
            number += 1
            beside = b".everywhen-%d-%d" % (os.getpid(), number)
            with suppress(FileExistsError):
                return beside, make(beside)

    def _kind(self, name: bytes) -> int:
        """Of what has this name (S_IFMT of its mode); 0: nothing has."""
        try:
            return stat.S_IFMT(os.stat(name, dir_fd=self.descriptor, follow_symlinks=False).st_mode)
        except FileNotFoundError:
            return 0

    def _entered(self, name: bytes) -> TargetFolder:
        return TargetFolder(os.open(name, _FOLDER, dir_fd=self.descriptor), overwrite=self._overwrite)
