# SPDX-License-Identifier: AGPL-3.0-or-later
"""The guest's own view of its files: the root of a Linux with what its mount table has, or the drives of a Windows.

Whose word is taken for what:

- Linux: the volume whose `/etc/fstab` has itself as `/`, else the first with one, else the first with an os-release. On
  Btrfs the subvolumes `@` and `root` are looked into, too. Devices by UUID, LABEL, PARTUUID, PARTLABEL, the same below
  /dev/disk, /dev/mapper, /dev/VG/LV, and by number of disk and partition, the disks in the order of their names.
- Windows: `C:` is the volume with `\\Windows\\System32`; the others have the next letters in their order, without those
  that Windows keeps for itself. Letters that somebody gave are in its registry, which is not read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from everywhen.guest.errors import GuestError, GuestUnsupported
from everywhen.guest.recognition import Role
from everywhen.guest.tree import FileSystem, Kind
from everywhen.guest.walking import find
from everywhen.services.view.joined_tree import Drives, JoinedTree, Mounted
from everywhen.services.view.volumes import GuestVolume

OpenSystem = Callable[[GuestVolume], FileSystem]
Readable = tuple[GuestVolume, FileSystem]

_LONGEST_TABLE = 1 << 20
_RELEASES = ("etc/os-release", "usr/lib/os-release")
_SUBVOLUMES = ("", "@", "root")
_NOT_MOUNTED = {"swap", "tmpfs", "proc", "sysfs", "devpts", "none", "nfs", "nfs4", "cifs", "autofs", "overlay", "debugfs"}
_OWN = ("EFI/Microsoft", "bootmgr", "Recovery/WindowsRE")
"""What only volumes have that Windows shows no letter for."""
_BY_NUMBER = re.compile(r"/dev/(?:[shxv]+d([a-z])|(?:nvme|mmcblk)([0-9])(?:n1)?p)([0-9]+)")
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of a mount table."""

    device: str
    folder: str
    kind: str
    options: tuple[str, ...]

    @property
    def subvolume(self) -> str:
        return next((one.removeprefix("subvol=").strip("/") for one in self.options if one.startswith("subvol=")), "")


@dataclass(frozen=True, slots=True)
class _Root:
    """What looks like the root of a Linux: a folder of a volume, and its mount table (None: it has none)."""

    volume: GuestVolume
    mounted: Mounted
    table: list[_Line] | None


class NoSystem(GuestUnsupported):
    """None of a guest's volumes looks like the root of its system; each can be looked into by itself."""


class _Known:
    """The volumes that can be read, by what mount tables call them."""

    def __init__(self, volumes: Sequence[GuestVolume], readable: Sequence[Readable]) -> None:
        self._readable = readable
        names = {disk for volume in volumes for disk in volume.disks}
        self._disks = sorted(names, key=lambda disk: (len(disk), disk))

    def device(self, spec: str) -> Readable | None:
        """The volume that is meant; None where it is none of these."""
        spec = spec.replace('"', "")
        by, _, value = spec.rpartition("/" if spec.startswith("/dev/disk/") else "=")
        if by in ("UUID", "/dev/disk/by-uuid"):
            return self._first(lambda _, system: bool(value) and system.uuid.casefold() == value.casefold())
        if by in ("LABEL", "/dev/disk/by-label"):
            return self._first(lambda _, system: bool(value) and system.label == value)
        if by in ("PARTUUID", "/dev/disk/by-partuuid"):
            return self._first(lambda volume, _: bool(value) and volume.part_uuid.casefold() == value.casefold())
        if by in ("PARTLABEL", "/dev/disk/by-partlabel"):
            return self._first(lambda volume, _: bool(value) and volume.part_label == value)
        if numbered := _BY_NUMBER.fullmatch(spec):
            index = ord(numbered[1]) - ord("a") if numbered[1] else int(numbered[2])
            disk = self._disks[index] if index < len(self._disks) else ""
            return self._first(lambda volume, _: volume.disks == (disk,) and volume.name == f"p{numbered[3]}")
        name = spec.removeprefix("/dev/mapper/")
        if name == spec and spec.startswith("/dev/") and spec.count("/") == 3:
            name = spec.removeprefix("/dev/").replace("-", "--").replace("/", "-")
        return self._first(lambda volume, _: volume.name == name)

    def _first(self, meant: Callable[[GuestVolume, FileSystem], bool]) -> Readable | None:
        return next((one for one in self._readable if meant(*one)), None)


def guest_tree(volumes: Sequence[GuestVolume], opened: OpenSystem) -> FileSystem:
    """All that the guest sees. Raises NoSystem, and what disks raise."""
    systems: dict[tuple[str, str], FileSystem] = {}
    shut = []
    for volume in volumes:
        if volume.role is Role.FILES:
            try:
                systems[volume.disks[0], volume.name] = opened(volume)
            except GuestError as error:
                shut.append(f"{volume.disks[0]}:/{volume.name} is not shown: {error}")
        elif volume.role in (Role.ENCRYPTED, Role.RAID):
            shut.append(f"{volume.disks[0]}:/{volume.name} is not shown: {volume.words}")
    readable = [(volume, systems[key]) for volume in volumes if (key := (volume.disks[0], volume.name)) in systems]
    roots = [root for volume, system in readable for root in _roots(volume, system)]
    if roots:
        known = _Known(volumes, readable)
        return _linux(_best(roots, known), known, shut)
    windows = next((one for one in readable if one[1].kind == "ntfs" and _leads(one[1], "Windows/System32")), None)
    if windows is not None:
        return _windows(windows, readable, shut)
    raise NoSystem("; ".join(["no volume looks like the root of a guest's system", *shut]))


def _roots(volume: GuestVolume, system: FileSystem) -> Iterator[_Root]:
    if system.kind in ("ntfs", "fat", "exfat"):
        return
    for subvolume in _SUBVOLUMES if system.kind == "btrfs" else ("",):
        table = _read(system, f"{subvolume}/etc/fstab")
        if table is not None or any(_leads(system, f"{subvolume}/{name}") for name in _RELEASES):
            lines = None if table is None else list(_lines(table))
            yield _Root(volume, (system, find(system, f"/{subvolume}").entry), lines)


def _best(roots: list[_Root], known: _Known) -> _Root:
    """The one whose own table says so, before those that have a table at all."""

    def certainty(root: _Root) -> int:
        own = next((line for line in root.table or () if line.folder == "/"), None)
        if own is None:
            return 1 if root.table is not None else 0
        found = known.device(own.device)
        return 3 if found is not None and found[0] is root.volume else 2

    return max(roots, key=certainty)  # the first of equals


def _linux(root: _Root, known: _Known, shut: list[str]) -> FileSystem:
    notes: list[str] = list(shut)
    wanted: list[tuple[_Line, GuestVolume, FileSystem]] = []
    for line in sorted(root.table or (), key=lambda line: line.folder.count("/")):
        if (
            line.folder in ("/", "none")
            or not line.folder.startswith("/")
            or line.kind in _NOT_MOUNTED
            or "bind" in line.options
        ):
            continue
        found = known.device(line.device)
        if found is None:
            notes.append(f"{line.folder} is not shown: {line.device} is none of the volumes that can be read")
        else:
            wanted.append((line, *found))
    tree = JoinedTree(root.mounted, tuple(notes))
    for line, _, system in wanted:
        try:
            folder = find(tree, line.folder).entry
        except GuestError:
            continue  # a table may name folders that are not there; then nothing is mounted
        tree.mount(folder, _opening(system, line.subvolume))
    return tree


def _opening(system: FileSystem, folder: str) -> Callable[[], Mounted]:
    return lambda: (system, find(system, f"/{folder}").entry)


def _windows(root: Readable, readable: Sequence[Readable], shut: list[str]) -> FileSystem:
    others = [
        one
        for one in readable
        if one[0] is not root[0]
        and one[1].kind.startswith(("ntfs", "fat", "exfat"))
        and not any(_leads(one[1], own) for own in _OWN)
    ]
    letters = [f"{letter}:" for letter in ascii_uppercase[ascii_uppercase.index("C") :]]
    shown = list(zip(letters, [root, *others], strict=False))
    notes = shut if len(shown) == 1 else [*shut, "The letters after C: are given by order; the guest may have others."]
    drives = Drives([letter for letter, _ in shown])
    tree = JoinedTree((drives, drives.root), tuple(notes))
    for letter, (_, system) in shown:
        tree.mount(tree.child(tree.root, letter), _opening(system, ""), drive=letter)
    return tree


def _lines(table: str) -> Iterator[_Line]:
    for line in table.splitlines():
        fields = [_OCTAL.sub(lambda code: chr(int(code[1], 8)), one) for one in line.split("#", 1)[0].split()]
        if len(fields) >= 3:
            yield _Line(fields[0], fields[1], fields[2], tuple(fields[3].split(",")) if len(fields) > 3 else ())


def _read(system: FileSystem, path: str) -> str | None:
    """A small file of text; None where there is none that can be read."""
    try:
        entry = find(system, path).entry
        if entry.kind is not Kind.FILE or entry.size > _LONGEST_TABLE:
            return None
        return system.open(entry).read(0, entry.size).decode(errors="surrogateescape")
    except GuestError:
        return None


def _leads(system: FileSystem, path: str) -> bool:
    try:
        find(system, path, follow=False)
    except GuestError:
        return False
    return True
