# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a file system inside a guest is to everybody else: entries as plain values, and content that can be read anywhere.

All that is here is plain values and the questions about them, so that the answers can come from another process
(docs/access.md): no entry holds an open file, and each question names the entry it is about.

Names are str. Bytes that are no UTF-8 (ext, XFS, Btrfs) are kept as surrogates (PEP 383): `os.fsencode` gives them back.
NTFS's unpaired surrogates are kept as they are. Links' targets are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from everywhen.guest.errors import GuestError


class Readable(Protocol):
    """Bytes at offsets: a disk, a partition, a logical volume. Every BlockDevice is one."""

    @property
    def size(self) -> int:
        """In bytes."""

    def read(self, offset: int, length: int) -> bytes:
        """Exactly the bytes asked for. Raises ValueError outside, DeviceError when they cannot be had."""


class Kind(StrEnum):
    """What an entry is. A second name of a file (hard link) is a file like the first."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "link"
    """A symbolic link; on NTFS a junction too."""
    BLOCK_DEVICE = "block device"
    CHARACTER_DEVICE = "character device"
    PIPE = "pipe"
    SOCKET = "socket"


@dataclass(frozen=True, slots=True)
class Times:
    """In ns since 1970 as the guest has them, UTC (`FileSystem.local_times`: of the guest's own zone). None: not kept there."""

    modified: int | None = None
    changed: int | None = None
    accessed: int | None = None
    created: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file, folder or anything else that has a name, as it was in the folder where it was found."""

    name: str
    """Never empty, `.`, `..`, and without `/` and NUL; the root's alone is empty."""
    kind: Kind
    number: int
    """Inode, MFT record; of FAT and exFAT the place of its record. Two names of one file have the same `identity`."""
    size: int
    """Bytes of content; 0 of what has none. Of a link: of its target."""
    times: Times = field(default_factory=Times)
    mode: int | None = None
    """Permission bits (0o7777), None where there are none (NTFS, FAT)."""
    uid: int | None = None
    gid: int | None = None
    links: int = 1
    allocated: int | None = None
    """Bytes the content takes on the volume, where that is cheap to know."""
    target: str | None = None
    """Of a link: where it leads, as the guest has it."""
    device: tuple[int, int] | None = None
    """Of a device: major and minor number."""
    subvolume: int = 0
    """Btrfs: the id of the subvolume; inodes are numbered within it."""

    @property
    def identity(self) -> tuple[int, int]:
        """The same for two names of one file, and for nothing else in this file system."""
        return self.subvolume, self.number


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An entry that is there and cannot be shown, or must not be: its name, as far as it can be told, and why."""

    name: str
    error: GuestError


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `place` to `place + length` of the volume."""

    place: int
    length: int


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes `start` to `start + length` of a content.

    `zero`: they are zeroes and stored nowhere (a hole, or never written). Else `stored` is where they are on the volume,
    as they are if it has the same length, compressed if not; None where the file system cannot tell.
    """

    start: int
    length: int
    zero: bool
    stored: Span | None = None

    @property
    def end(self) -> int:
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class Stream:
    """A named content beside the one without a name (NTFS alternate data stream)."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class DriveLetters:
    """What a Windows calls the volumes of a VM: disk and volume by letter, and by the names that links to a volume have.

    `whole`: its registry was not being written; else its newest changes may be missing.
    """

    given: Mapping[str, tuple[str, str]]
    names: Mapping[str, tuple[str, str]]
    """By `volume{…}` in lower case: how a volume is called that is shown in a folder of another one."""
    whole: bool


class Content(Protocol):
    """The content of a file at one moment. To be used by one thread at a time."""

    @property
    def size(self) -> int:
        """In bytes; may be absurd where holes make it so."""

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset`: `length` of them, fewer only at the end, none past it.

        Raises GuestError where they cannot be read (the rest may be readable), DeviceError as the volume does.
        """

    def runs(self) -> Iterator[Run]:
        """The whole content in order, without gaps between runs. No content is read."""


class FileSystem(Protocol):
    """A file system inside a guest. To be used by one thread at a time.

    Each call takes an Entry of this file system. All raise GuestError about that entry, and DeviceError as the volume does;
    the work of each is bounded by what the volume can hold, not by what its bytes claim.
    """

    @property
    def kind(self) -> str:
        """`ext4`, `ntfs`, …"""

    @property
    def label(self) -> str:
        """May be empty."""

    @property
    def uuid(self) -> str:
        """As mount tables write it (of FAT `1A2B-3C4D`, of NTFS 16 hexadecimal digits), or empty."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever looks must know, a sentence each: not unmounted and not replayed, another device missing."""

    @property
    def local_times(self) -> bool:
        """Whether times are of the guest's own zone, which the file system does not know (FAT)."""

    @property
    def case_sensitive(self) -> bool:
        """Whether `a` and `A` are two names."""

    @property
    def root(self) -> Entry:
        """Its name is empty."""

    def subvolume(self, number: int | None) -> Entry:
        """The folder that is mounted for the subvolume of this number, or (None) where none is said: of Btrfs the default one.

        Where there are no subvolumes it is the root. Raises GuestError.
        """

    def entries(self, folder: Entry) -> Iterator[Entry | Unreadable]:
        """What is in a folder, in the order it is there, without `.` and `..`. Lazily: a folder may have millions.

        An entry that cannot be read is an Unreadable among the others. Raises WrongKind if it is no folder; raises in the
        middle if the rest of the folder cannot be read.
        """

    def child(self, folder: Entry, name: str) -> Entry:
        """The entry of that name in a folder; a link is not followed. Raises NoSuchPath (about the name alone)."""

    def open(self, entry: Entry, stream: str = "") -> Content:
        """Content of a file, or one of its named streams (a folder can have these too). Raises WrongKind if it has none."""

    def streams(self, entry: Entry) -> tuple[Stream, ...]:
        """Named streams; without the one that has no name."""

    def attributes(self, entry: Entry) -> dict[str, bytes]:
        """Extended attributes by full name (`user.comment`, `security.capability`, `system.posix_acl_access`)."""

    def metadata(self, entry: Entry) -> tuple[Span, ...]:
        """What says where the content is: the inode or MFT record, and the blocks of its list of extents.

        As long as neither these bytes nor those of the content's runs change, the content is the same. Empty where the file
        system cannot tell, or moves them with every change (Btrfs).
        """
