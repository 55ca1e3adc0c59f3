# SPDX-License-Identifier: AGPL-3.0-or-later
"""The drives of a Windows: by the letters in its registry, and by order where that has none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from everywhen.guest.errors import GuestError
from everywhen.guest.tree import DriveLetters, FileSystem
from everywhen.guest.walking import is_there
from everywhen.services.view.mount_table import Readable
from everywhen.services.view.volumes import GuestVolume

GivenLetters = Callable[[GuestVolume], DriveLetters]
"""What the registry on a volume says. Raises GuestError."""

_OWN = ("EFI/Microsoft", "bootmgr", "Recovery/WindowsRE")
"""What only volumes have that Windows shows no letter for."""
_OLDER = "The letters are those of the registry as it was last written whole; newer ones may be in its logs."


@dataclass(frozen=True, slots=True)
class ShownDrives:
    """File systems by drive (`C:`), in their order, and what is to be said of them."""

    systems: dict[str, FileSystem]
    volumes: dict[str, str]
    """Drives by what links call their volumes (`volume{…}`)."""
    notes: list[str]


def drives(root: Readable, readable: Sequence[Readable], given: GivenLetters) -> ShownDrives:
    """The drives of a Windows, which itself is on `root`."""
    found: dict[str, Readable] = {}
    notes: list[str] = []
    why = ": the registry has none for it"
    try:
        letters = given(root[0])
    except GuestError as error:
        letters = DriveLetters({"C": (root[0].disks[0], root[0].name)}, {}, whole=True)
        why = f": the registry cannot be read ({error})"
    of_windows = {(disk, one[0].name): one for one in readable if _is_for_windows(one) for disk in one[0].disks}
    found |= {letter: of_windows[place] for letter, place in letters.given.items() if place in of_windows}
    notes += [] if letters.whole else [_OLDER]
    lettered = {one[0] for one in found.values()}
    rest = [
        one for one in readable if one[0] not in lettered and (one is root or (_is_for_windows(one) and not _is_own(one[1])))
    ]
    rest.sort(key=lambda one: one is not root)
    free = [letter for letter in ascii_uppercase[ascii_uppercase.index("C") :] if letter not in found]
    for letter, one in zip(free, rest, strict=False):
        found[letter] = one
        notes.append(f"{letter}: is given by order to {one[0].disks[0]}:/{one[0].name}{why}.")
    letter_of = {one[0]: f"{letter}:" for letter, one in found.items()}
    volumes = {name: of_windows[place][0] for name, place in letters.names.items() if place in of_windows}
    return ShownDrives(
        {f"{letter}:": found[letter][1] for letter in sorted(found)},
        {name: letter_of[volume] for name, volume in volumes.items() if volume in letter_of},
        notes,
    )


def _is_for_windows(one: Readable) -> bool:
    return one[1].kind.startswith(("ntfs", "fat", "exfat"))


def _is_own(system: FileSystem) -> bool:
    return any(is_there(system, own) for own in _OWN)
