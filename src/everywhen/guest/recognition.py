# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a volume is, by its first bytes (as blkid of util-linux does; the magic numbers are each format's own)."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from everywhen.formats.errors import FormatError
from everywhen.formats.filesystems.fat import decode_boot_sector
from everywhen.guest.footprint import taking_down
from everywhen.guest.tree import Readable


class Role(StrEnum):
    """What can be done with a volume."""

    FILES = "files"
    """A file system that is read here."""
    OTHER_FILES = "other files"
    """One that is not; its device can be used."""
    SWAP = "swap"
    LVM = "LVM"
    RAID = "RAID"
    ENCRYPTED = "encrypted"
    UNKNOWN = "unknown"


_ENDS_AT: Final = 68 << 10
_ZFS_RING: Final = 128 << 10
_ZFS_MAGICS: Final = (b"\x0c\xb1\xba\0\0\0\0\0", b"\0\0\0\0\0\xba\xb1\x0c")
_SWAP_MAGICS: Final = (b"SWAPSPACE2", b"SWAP-SPACE", b"S1SUSPEND\0", b"S2SUSPEND\0", b"ULSUSPEND\0")
"""The last three: a machine that was put to sleep on it."""
_SWAP_PAGES: Final = (4096, 8192, 16384, 65536)
_MAGICS: Final = (  # kind, role, place, bytes; what is certain before what is not
    ("BitLocker", Role.ENCRYPTED, 3, b"-FVE-FS-"),
    ("BitLocker", Role.ENCRYPTED, 424, bytes.fromhex("3bd66749292ed84a8399f6a339e3d001")),  # To Go: begins like FAT
    ("LUKS", Role.ENCRYPTED, 0, b"LUKS\xba\xbe"),
    ("xfs", Role.FILES, 0, b"XFSB"),
    ("btrfs", Role.FILES, 65600, b"_BHRfS_M"),
    ("ntfs", Role.FILES, 3, b"NTFS    "),
    ("exfat", Role.FILES, 3, b"EXFAT   "),
    ("ReFS", Role.OTHER_FILES, 3, b"ReFS\0\0\0\0"),
    ("HPFS", Role.OTHER_FILES, 8192, b"\x49\xe8\x95\xf9"),
    ("APFS", Role.OTHER_FILES, 32, b"NXSB"),
    ("F2FS", Role.OTHER_FILES, 1024, b"\x10\x20\xf5\xf2"),
    ("JFS", Role.OTHER_FILES, 32768, b"JFS1"),
    ("ReiserFS", Role.OTHER_FILES, 65536 + 52, b"ReIsEr"),
    ("GFS2", Role.OTHER_FILES, 65536, b"\x01\x16\x19\x70"),
    ("OCFS2", Role.OTHER_FILES, 1024, b"OCFSV2"),
    ("OCFS2", Role.OTHER_FILES, 2048, b"OCFSV2"),
    ("OCFS2", Role.OTHER_FILES, 4096, b"OCFSV2"),
    ("OCFS2", Role.OTHER_FILES, 8192, b"OCFSV2"),
    ("bcachefs", Role.OTHER_FILES, 4096 + 24, bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")),
    ("bcachefs", Role.OTHER_FILES, 4096 + 24, bytes.fromhex("c68573f666ce90a9d96a60cf803df7ef")),
    ("ISO 9660", Role.OTHER_FILES, 32769, b"CD001"),
    ("UDF", Role.OTHER_FILES, 32769, b"BEA01"),
    ("HFS+", Role.OTHER_FILES, 1024, b"H+\0\4"),
    ("HFS+", Role.OTHER_FILES, 1024, b"HX\0\5"),
    ("SquashFS", Role.OTHER_FILES, 0, b"hsqs"),
    ("Linux RAID", Role.RAID, 4096, b"\xfc\x4e\x2b\xa9"),
    ("Linux RAID", Role.RAID, 0, b"\xfc\x4e\x2b\xa9"),
    ("ext", Role.FILES, 1080, b"\x53\xef"),
)
_IN_BOOT_SECTOR: Final = ("ntfs", "exfat", "fat", "BitLocker", "ReFS")


def recognise(volume: Readable) -> tuple[str, Role]:
    """Kind and role. Of ext and FAT the exact kind is known when they are opened.

    What is taken down as read (footprint.py) is what decides: the magic number, or all of it where nothing was recognised. Of a
    file system that is read here nothing: what is in it says so, too, and its superblock's neighbours change with every write.
    """
    with taking_down(None):
        kind, role, decides = _found(volume)
    for offset, length in decides if role is not Role.FILES else ():
        volume.read(offset, length)
    return kind, role


def _found(volume: Readable) -> tuple[str, Role, list[tuple[int, int]]]:
    """Kind, role, and on which bytes that rests: (offset, length)."""
    head = volume.read(0, min(_ENDS_AT, volume.size))
    for at in range(0, 2048, 512):
        if head[at : at + 8] == b"LABELONE" and head[at + 24 : at + 32] == b"LVM2 001":
            return "LVM", Role.LVM, [(at, 32)]
    for kind, role, place, magic in _MAGICS:
        if head[place : place + len(magic)] == magic:
            return kind, role, [(place, len(magic))]
    for page in _SWAP_PAGES:
        if head[page - 10 : page] in _SWAP_MAGICS:
            return "swap", Role.SWAP, [(page - 10, 10)]
    try:
        decode_boot_sector(head[:512])
    except FormatError:
        kind, role, decides = _by_its_end(volume)
        return kind, role, [(0, len(head)), *decides]
    return "fat", Role.FILES, [(0, 512)]


def _by_its_end(volume: Readable) -> tuple[str, Role, list[tuple[int, int]]]:
    """RAIDs that keep what they are at the end, and ZFS, which has a ring of blocks that say so."""
    decides = []
    for kind, place, magic in (
        ("Linux RAID", (volume.size & ~0xFFFF) - 0x10000, b"\xfc\x4e\x2b\xa9"),
        ("Linux RAID", ((volume.size >> 9) - 16 & ~7) << 9, b"\xfc\x4e\x2b\xa9"),
        ("Intel RAID", (volume.size >> 9 << 9) - 1024, b"Intel Raid ISM"),
    ):
        if place >= 0:
            decides.append((place, min(len(magic), volume.size - place)))
            if volume.read(*decides[-1]) == magic:
                return kind, Role.RAID, decides
    if volume.size >= 2 * _ZFS_RING:
        decides.append((_ZFS_RING, _ZFS_RING))
        ring = volume.read(*decides[-1])
        if any(ring[at : at + 8] in _ZFS_MAGICS for at in range(0, len(ring), 1024)):
            return "ZFS", Role.OTHER_FILES, decides
    return "unknown", Role.UNKNOWN, decides


def fills_a_boot_sector(kind: str) -> bool:
    """Whether this kind begins with a boot sector, which ends like a partition table and has none."""
    return kind in _IN_BOOT_SECTOR


def without_files(kind: str, role: Role) -> str:
    """Why no files of a volume are listed here: what follows its name in a sentence."""
    return {
        Role.ENCRYPTED: f"is encrypted ({kind}): without its key its files cannot be listed; its device can be used",
        Role.SWAP: "is the guest's swap space: it has no files",
        Role.LVM: "is a part of a volume group of LVM: its logical volumes are listed by their names",
        Role.RAID: f"is a part of a RAID ({kind}), which is not read here; its device can be used",
        Role.OTHER_FILES: f"is {kind}, which is not read here; its device can be used",
    }.get(role, "has no file system that is known here; its device can be used")
