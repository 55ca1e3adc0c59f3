# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which volumes a Windows shows under which letters, as its registry has it (HKLM\\SYSTEM\\MountedDevices).

A value `\\DosDevices\\C:` there says which partition is meant: of an MBR the disk's signature (u32) and the partition's first
byte (u64), of a GPT `DMIO:ID:` and the partition's GUID (16 bytes). Longer ones are names of devices that come and go. The same
values are there as `\\??\\Volume{GUID}`, which is what a folder leads to in which a volume is shown.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from uuid import UUID

from everywhen.guest.errors import parsing
from everywhen.guest.reading import Window
from everywhen.guest.registry import Hive
from everywhen.guest.tree import DriveLetters, FileSystem
from everywhen.guest.volumes import Volume
from everywhen.guest.walking import find

_HIVE = "Windows/System32/config/SYSTEM"
_KEY = ("MountedDevices",)
_LETTER = re.compile(r"\\DosDevices\\([A-Za-z]):")
_VOLUME = re.compile(r"\\\?\?\\(Volume\{[0-9A-Fa-f-]{36}\})")
_OF_GPT = b"DMIO:ID:"


def drive_letters(windows: FileSystem, volumes: Sequence[Volume]) -> DriveLetters:
    """The letters that the Windows on this volume gives to those that are here. Raises GuestError, DeviceError."""
    with parsing("the registry"):
        hive = Hive(windows.open(find(windows, _HIVE).entry))
        known = {key: (volume.disks[0], volume.name) for volume in volumes if (key := _identity(volume))}
        here = {name: known[value] for name, value in hive.values(_KEY) if value in known}
        letters = {found[1].upper(): place for name, place in here.items() if (found := _LETTER.fullmatch(name))}
        names = {found[1].lower(): place for name, place in here.items() if (found := _VOLUME.fullmatch(name))}
        return DriveLetters(letters, names, hive.is_whole)


def _identity(volume: Volume) -> bytes | None:
    """What the registry calls a partition; None of what it has no name for."""
    if not volume.part_uuid or not isinstance(volume.content, Window):
        return None
    signature, _, number = volume.part_uuid.partition("-")
    if "-" in number:
        return _OF_GPT + UUID(volume.part_uuid).bytes_le
    return struct.pack("<IQ", int(signature, 16), volume.content.start)
