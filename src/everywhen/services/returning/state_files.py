# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a VM has beside disks and definition, put back where libvirt looks for it: UEFI variables, and the state of a TPM.

libvirt keeps an emulated TPM's state below its own folder, in one named by the domain's UUID; owners come by their names, since
numbers are another host's (capture/domain_files.py says how they are taken).
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from everywhen.block.target_file import PARTIAL_SUFFIX
from everywhen.formats.errors import Corrupt
from everywhen.services.failures import NotAllowed
from everywhen.services.returning.wishes import Check, failed


def _may_be_made(path: str) -> Check | None:
    """None where this user may write to the folder that it will be in, or to the one that that is made in."""
    folder = os.path.dirname(path)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    if os.access(folder, os.W_OK):
        return None
    return failed(f"This user may not write to {folder}, where {path} belongs.", "sudo", kind=NotAllowed)


_PLACE = (
    "It is there since the VM was undefined, or belongs to another one: move it away",
    "A VM of its own beside it: --as new --name NAME",
)


@dataclass(frozen=True, slots=True)
class Variables:
    """The file of a domain's UEFI variables."""

    path: str
    content: bytes

    def check(self) -> Check | None:
        """None where nothing, or the same, is at its place. Raises OSError."""
        try:
            there = Path(self.path).read_bytes()
        except FileNotFoundError:
            return _may_be_made(self.path)
        return None if there == self.content else failed(f"{self.path} is there, with other UEFI variables.", *_PLACE)

    def put(self) -> None:
        """Durable and whole, or not there. Raises OSError."""
        os.makedirs(os.path.dirname(self.path), mode=0o755, exist_ok=True)
        partial = self.path + PARTIAL_SUFFIX
        _write(partial, self.content, 0o600)
        os.replace(partial, self.path)

    def remove(self) -> None:
        """Nothing is left of it. Raises OSError."""
        for path in (self.path + PARTIAL_SUFFIX, self.path):
            with suppress(FileNotFoundError):
                os.unlink(path)


@dataclass(frozen=True, slots=True)
class TpmState:
    """The state of an emulated TPM: its folder, and what is in it, as a tar."""

    path: str
    tar: bytes

    def check(self) -> Check | None:
        """None where nothing, or the same, is at its place. Raises OSError, Corrupt."""
        if not os.path.lexists(self.path):
            return _may_be_made(self.path)
        wanted = {member.name: content for member, content in self._members()}
        there = {str(path.relative_to(self.path)): path.read_bytes() for path in Path(self.path).rglob("*") if path.is_file()}
        same = all(there.get(name) == content for name, content in wanted.items() if not name.endswith(".lock"))
        return None if same else failed(f"{self.path} is there, with another state of a TPM.", *_PLACE)

    def put(self) -> None:
        """Durable and whole, or not there. Raises OSError, Corrupt."""
        if os.path.lexists(self.path):
            return  # the same: it was checked
        partial = self.path + PARTIAL_SUFFIX
        shutil.rmtree(partial, ignore_errors=True)
        os.makedirs(partial, mode=0o711)  # as libvirt has it: its TPM's process passes through
        for member, content in self._members():
            path = os.path.join(partial, member.name)
            owner = _owner(member)
            for folder in _folders(partial, path):
                os.mkdir(folder, 0o700)
                _give(folder, owner)
            _write(path, content, member.mode & 0o777)
            _give(path, owner)
        os.rename(partial, self.path)

    def remove(self) -> None:
        """Nothing is left of it. Raises OSError."""
        for path in (self.path + PARTIAL_SUFFIX, self.path):
            if os.path.lexists(path):
                shutil.rmtree(path)

    def _members(self) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
        """Its files. Raises Corrupt for what capture has not made."""
        try:
            with tarfile.open(fileobj=io.BytesIO(self.tar)) as tar:
                for member in tar:
                    parts = Path(member.name).parts
                    if not member.isreg() or os.path.isabs(member.name) or os.pardir in parts or not parts:
                        raise Corrupt(f"the TPM's state has {member.name!r}, which is no file below its folder")
                    file = tar.extractfile(member)
                    yield member, b"" if file is None else file.read()
        except tarfile.TarError as error:
            raise Corrupt(f"the TPM's state cannot be read: {error}") from error


StateFile = Variables | TpmState


def _write(path: str, content: bytes, mode: int) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _folders(top: str, path: str) -> list[str]:
    """Folders between the two that are not there yet, the highest first."""
    found = []
    folder = os.path.dirname(path)
    while folder != top and not os.path.isdir(folder):
        found.append(folder)
        folder = os.path.dirname(folder)
    return found[::-1]


def _owner(member: tarfile.TarInfo) -> tuple[int | str, int | str]:
    return member.uname or member.uid, member.gname or member.gid


def _give(path: str, owner: tuple[int | str, int | str]) -> None:
    """To its owner, where this host knows one of the name; only root may: what another makes is its own (libvirt's session)."""
    with suppress(LookupError, PermissionError):
        shutil.chown(path, *owner)
