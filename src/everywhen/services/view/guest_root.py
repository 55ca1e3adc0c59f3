# SPDX-License-Identifier: AGPL-3.0-or-later
"""The guest's own view of its files: the root of a Linux with what its mount table has, or the drives of a Windows.

Whose word is taken for what:

- Linux: the volume whose `/etc/fstab` has itself as `/`, else the first with one, else the first with an os-release. On
  Btrfs the default subvolume and those in the top folder are looked into. What the table mounts: `mount_table.py`.
- Windows: it is on the first volume with `\\Windows\\System32`; its registry has the letters of that and of the others
  (`windows_drives.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from everywhen.guest.errors import GuestError, GuestUnsupported
from everywhen.guest.recognition import Role
from everywhen.guest.tree import Entry, FileSystem, Kind
from everywhen.guest.walking import find, is_there
from everywhen.services.view.joined_tree import Drives, JoinedTree, Mounted
from everywhen.services.view.mount_table import KnownVolumes, Line, Readable, in_order, lines
from everywhen.services.view.volumes import GuestVolume
from everywhen.services.view.windows_drives import GivenLetters, drives

OpenSystem = Callable[[GuestVolume], FileSystem]

_LONGEST_TABLE = 1 << 20
_RELEASES = ("etc/os-release", "usr/lib/os-release")
_SUBVOLUMES = ("", "@", "root", "@rootfs")
"""The default and the top one; of Ubuntu, Fedora, Debian."""
_MOST_FOLDERS = 256
"""In the top folder of a Btrfs."""


@dataclass(frozen=True, slots=True)
class _Root:
    """What looks like the root of a Linux: a folder of a volume, and its mount table (None: it has none)."""

    volume: GuestVolume
    mounted: Mounted
    table: list[Line] | None


class NoSystem(GuestUnsupported):
    """None of a guest's volumes looks like the root of its system; each can be looked into by itself."""


def guest_tree(volumes: Sequence[GuestVolume], opened: OpenSystem, given: GivenLetters) -> FileSystem:
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
        known = KnownVolumes(volumes, readable)
        return _linux(_best(roots, known), known, shut)
    windows = next((one for one in readable if one[1].kind == "ntfs" and is_there(one[1], "Windows/System32")), None)
    if windows is not None:
        return _windows(windows, readable, given, shut)
    raise NoSystem("; ".join(["no volume looks like the root of a guest's system", *shut]))


def _roots(volume: GuestVolume, system: FileSystem) -> Iterator[_Root]:
    if system.kind in ("ntfs", "fat", "exfat"):
        return
    for folder in _subvolumes(system) if system.kind == "btrfs" else (system.root,):
        tree = JoinedTree((system, folder))
        table = _read(tree, "etc/fstab")
        if table is not None or any(is_there(tree, name) for name in _RELEASES):
            yield _Root(volume, (system, folder), None if table is None else list(lines(table)))


def _subvolumes(system: FileSystem) -> Iterator[Entry]:
    """Where the root of a Linux on Btrfs may be, the likeliest first."""
    found: dict[tuple[int, int], Entry] = {}
    try:
        default = system.subvolume(None)
        found = {one.identity: one for one in (default, system.root)}
        for entry in itertools.islice(system.entries(system.root), _MOST_FOLDERS):
            if isinstance(entry, Entry) and entry.kind is Kind.FOLDER and entry.subvolume != system.root.subvolume:
                found.setdefault(entry.identity, entry)
    except GuestError:
        pass  # where it is damaged, what was found until then
    names = {name: number for number, name in enumerate(_SUBVOLUMES)}
    yield from sorted(found.values(), key=lambda one: names.get(one.name, len(names)))


def _best(roots: list[_Root], known: KnownVolumes) -> _Root:
    """The one whose own table says so, before those that have a table at all."""

    def certainty(root: _Root) -> int:
        own = next((line for line in root.table or () if line.folder == "/"), None)
        if own is None:
            return 1 if root.table is not None else 0
        found = known.device(own.device)
        if found is None or found[0] is not root.volume:
            return 2
        try:
            meant = _opening(found[1], own.subvolume)()[1]
        except GuestError:
            return 3
        return 4 if meant.identity == root.mounted[1].identity else 3

    return max(roots, key=certainty)  # the first of equals


def _linux(root: _Root, known: KnownVolumes, shut: list[str]) -> FileSystem:
    notes: list[str] = list(shut)
    wanted: list[tuple[Line, FileSystem | None]] = []
    for line in in_order([line for line in root.table or () if line.is_mounted]):
        found = None if line.is_bind else known.device(line.device)
        if found is None and not line.is_bind:
            notes.append(f"{line.folder} is not shown: {line.device} is none of the volumes that can be read")
        else:
            wanted.append((line, found[1] if found else None))
    for line in root.table or ():
        if line.by_hand and (found := known.device(line.device)):
            where = f"{found[0].disks[0]}:/{found[0].name}"
            notes.append(f"{line.folder} is not shown: the guest mounts it when somebody says so; it is {where}")
    tree = JoinedTree(root.mounted, tuple(notes))
    for line, system in wanted:
        try:
            folder = find(tree, line.folder).entry
            # What is bound is looked up now, as the guest does: it may be this very folder, or have others mounted in it later.
            opened = _bound(tree, line.device) if system is None else _opening(system, line.subvolume)
        except GuestError:
            continue  # a table may name folders that are not there; then nothing is mounted
        if folder.kind is Kind.FOLDER:
            tree.mount(folder, opened)
    return tree


def _opening(system: FileSystem, subvolume: str | int | None) -> Callable[[], Mounted]:
    if isinstance(subvolume, str):
        return lambda: (system, find(system, f"/{subvolume}").entry)
    return lambda: (system, system.subvolume(subvolume))


def _bound(tree: JoinedTree, source: str) -> Callable[[], Mounted]:
    found = tree.mounted_at(find(tree, source).entry)
    return lambda: found


def _windows(root: Readable, readable: Sequence[Readable], given: GivenLetters, shut: list[str]) -> FileSystem:
    shown = drives(root, readable, given)
    folders = Drives(list(shown.systems))
    tree = JoinedTree((folders, folders.root), (*shut, *shown.notes), volumes=shown.volumes)
    for letter, system in shown.systems.items():
        tree.mount(tree.child(tree.root, letter), _opening(system, None), drive=letter)
    return tree


def _read(system: FileSystem, path: str) -> str | None:
    """A small file of text; None where there is none that can be read."""
    try:
        entry = find(system, path).entry
        if entry.kind is not Kind.FILE or entry.size > _LONGEST_TABLE:
            return None
        return system.open(entry).read(0, entry.size).decode(errors="surrogateescape")
    except GuestError:
        return None
