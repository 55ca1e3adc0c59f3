# SPDX-License-Identifier: AGPL-3.0-or-later
"""File systems with bytes changed where readers look: each question ends in an answer or a GuestError, after bounded work."""

from __future__ import annotations

import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from everywhen.formats.filesystems.fat import decode_boot_sector
from everywhen.guest.errors import GuestError
from everywhen.guest.names import name_error
from everywhen.guest.recognition import recognise
from everywhen.guest.tree import FileSystem, Kind, Unreadable
from everywhen.guest.volumes import Volume, find_volumes, open_file_system
from everywhen.guest.walking import Found, walk
from tests.guest_images import Image, content_of, empty, exfat_mounted, need, run
from tests.long_forms import SOAK

ROUNDS = 1500 if SOAK else 60
MOST_READ = 256 << 20
"""Bytes; the file systems have at most 1 MiB that is not zero. Large reads of holes that are none any more count too."""


class Changed(Image):
    """An image with some bytes of it changed; remembers where it was read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.changes: dict[int, int] = {}
        self.looked_at: set[tuple[int, int]] = set()

    def read(self, offset: int, length: int) -> bytes:
        data = super().read(offset, length)
        assert self.bytes_read < MOST_READ, "it reads on and on"
        self.looked_at.add((offset, min(length, 512)))
        inside = [at for at in self.changes if offset <= at < offset + length]
        if inside:
            changed = bytearray(data)
            for at in inside:
                changed[at - offset] = self.changes[at]
            return bytes(changed)
        return data


def source(folder: Path) -> Path:
    """A tree to fill file systems with."""
    root = folder / "source"
    (root / "a" / "b").mkdir(parents=True)
    (root / "many").mkdir()
    for number in range(60):
        (root / "many" / f"a rather long name of a file, number {number}").write_bytes(content_of(number, number * 10))
    (root / "a" / "file").write_bytes(content_of(1, 50_000))
    (root / "a" / "b" / "text").write_text("the same line\n" * 3000)
    return root


def make(kind: str, folder: Path) -> Path:
    """A small image of this kind."""
    tree = source(folder)
    image = empty(folder / "image", (320 if kind == "xfs" else 128 if kind == "btrfs" else 8) << 20)
    if kind.startswith("ext"):
        need(f"mkfs.{kind}")
        run(f"mkfs.{kind}", "-q", "-b", "1024", "-d", tree, image)
    elif kind == "btrfs":
        need("mkfs.btrfs")
        run("mkfs.btrfs", "-q", "--rootdir", tree, image)
    elif kind == "xfs":
        need("mkfs.xfs")
        lines = ["/", "0 0", "d--755 0 0", "a d--755 0 0", f"file ---644 0 0 {tree / 'a' / 'file'}", "$", "many d--755 0 0"]
        lines += [f"name-number-{number} ---644 0 0 {path}" for number, path in enumerate(sorted((tree / "many").iterdir()))]
        copies = folder / "copies"
        copies.mkdir()
        for number, line in enumerate(lines):
            if "number" in line:
                path = copies / str(number)
                path.write_bytes(content_of(number, 300))
                lines[number] = line.partition(" /")[0] + f" {path}"
        (folder / "prototype").write_text("\n".join([*lines, "$", "$"]) + "\n")
        run("mkfs.xfs", "-q", "-p", folder / "prototype", image)
    elif kind == "fat":
        need("mkfs.fat", "mcopy")
        run("mkfs.fat", "-s", "1", image)
        run("mcopy", "-s", "-i", image, *sorted(tree.iterdir()), "::")
    elif kind == "exfat":
        need("mkfs.exfat")
        run("mkfs.exfat", image)
        with exfat_mounted(image) as folder:
            shutil.copytree(tree, folder, dirs_exist_ok=True)
    elif kind == "ntfs":
        need("mkntfs", "ntfscp")
        run("mkntfs", "-q", "-F", image)
        run("ntfscp", image, tree / "a" / "file", "file")
        run("ntfscp", image, tree / "a" / "b" / "text", "text")
    return image


def uncached(disk: Changed) -> FileSystem:
    """The file system on a disk, so that each of its reads is seen."""
    return open_file_system(Volume("p0", ("vda",), disk.size, *recognise(disk), disk))


def opened(image: Path) -> FileSystem:
    return open_file_system(find_volumes({"vda": Image(image)}).found[0])


def use(system: FileSystem) -> Iterator[str]:
    """Asks for everything that there is; yields what was there."""
    for item in walk(system, Found("/", system.root)):
        if not isinstance(item, Found):
            assert isinstance(item[1].error, GuestError)
            continue
        assert name_error(item.entry.name) is None
        yield item.path
        for question in (system.attributes, system.streams, system.metadata):
            try:
                question(item.entry)
            except GuestError:
                continue
        if item.entry.kind is Kind.FILE:
            try:
                content = system.open(item.entry)
                content.read(0, 1 << 16)
                content.read(max(0, content.size - 1000), 1 << 16)
                sum(1 for _run, _number in zip(content.runs(), range(2000), strict=False))
            except GuestError:
                continue


@pytest.mark.parametrize("kind", ["ext2", "ext4", "xfs", "btrfs", "fat", "exfat", "ntfs"])
def test_changed_bytes_end_in_errors(kind: str, tmp_path: Path) -> None:
    image = make(kind, tmp_path)
    disk = Changed(image)
    whole = list(use(uncached(disk)))
    assert len(whole) >= 2
    places = sorted(disk.looked_at)
    fewer = 0
    for round_ in range(ROUNDS):
        chance = random.Random(f"{kind} {round_}")
        disk = Changed(image)
        for _ in range(chance.choice((1, 1, 3, 10))):
            place, length = chance.choice(places)
            at = place + chance.choice((chance.randrange(length), chance.randrange(min(length, 64))))
            value = chance.choice((0, 1, 2, 0x7F, 0x80, 0xFF, chance.randrange(256)))
            if chance.random() < 0.3:
                disk.changes |= {at + step: value for step in range(4) if at + step < disk.size}
            disk.changes[at] = value
        try:
            fewer += len(list(use(uncached(disk)))) < len(whole)
            find_volumes({"vda": disk})
        except GuestError:
            fewer += 1
    assert fewer > ROUNDS // 20, "hardly any change did anything: they were in the wrong places"


def test_a_folder_that_is_in_itself_is_entered_once(tmp_path: Path) -> None:
    need("mkfs.ext2", "debugfs")
    image = make("ext2", tmp_path)
    run("debugfs", "-w", "-R", "link /a /a/b/again", image)
    run("debugfs", "-w", "-R", "link /a /second", image)
    system = open_file_system(find_volumes({"vda": Image(image)}).found[0])
    found = list(walk(system, Found("/", system.root)))
    errors = {item[0]: str(item[1].error) for item in found if not isinstance(item, Found)}
    assert set(errors) in ({"/a/b/again", "/second"}, {"/second/b/again", "/a"})
    assert all("found under another name" in error for error in errors.values())
    assert len([item for item in found if isinstance(item, Found) and item.path.endswith("/file")]) == 1


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "x\0y"])
def test_names_that_are_paths_are_errors(name: str, tmp_path: Path) -> None:
    need("mkfs.ext2", "debugfs")
    image = make("ext2", tmp_path)
    data = bytearray(image.read_bytes())
    wanted = b"file"
    at = data.index(struct.pack("<BB", 4, 1) + wanted)
    raw = name.encode()
    data[at], data[at + 2 : at + 2 + len(raw)] = len(raw), raw
    image.write_bytes(bytes(data))
    system = open_file_system(find_volumes({"vda": Image(image)}).found[0])
    found = list(walk(system, Found("/", system.root)))
    assert not [item for item in found if isinstance(item, Found) and item.entry.name == name]
    if name not in (".", ".."):  # which every folder of ext has, and are left out
        assert [item for item in found if not isinstance(item, Found) and item[1].name == name]


def test_a_chain_of_clusters_that_goes_round_is_followed_once(tmp_path: Path) -> None:
    image = make("fat", tmp_path)
    data = bytearray(image.read_bytes())
    boot = decode_boot_sector(bytes(data))
    assert boot.bits == 16
    folder = next(entry for entry in opened(image).entries(opened(image).root) if entry.name == "many")
    assert not isinstance(folder, Unreadable)
    chain = [folder.number]
    while chain[-1] < 0xFFF8:
        at = boot.table_place + 2 * chain[-1]
        chain.append(int.from_bytes(data[at : at + 2], "little"))
    at = boot.table_place + 2 * chain[2]
    data[at : at + 2] = struct.pack("<H", chain[1])
    image.write_bytes(bytes(data))
    system, found = opened(image), walk(opened(image), Found("/many", folder))
    with pytest.raises(GuestError, match="goes round"):
        list(system.entries(folder))
    names = [item.entry.name for item in found if isinstance(item, Found)]
    assert 5 < len(names) == len(set(names)) < 60
    assert system.child(folder, names[-1]).name == names[-1]
