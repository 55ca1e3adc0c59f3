# SPDX-License-Identifier: AGPL-3.0-or-later
"""Each kind of file system is the same where the confined process parses it: nothing that a reader needs is out of reach."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import pytest

from everywhen.block.device import DeviceError
from everywhen.block.open_image import open_image
from everywhen.guest.errors import GuestError
from everywhen.guest.tree import FileSystem, Kind, Readable
from everywhen.guest.volumes import find_volumes, open_file_system
from everywhen.guest.walking import Found, walk
from everywhen.services.view.files import GuestFiles
from tests.foreign_images import needs_images
from tests.guest_images import Image, digest

pytestmark = needs_images

IMAGES = [
    "raw/exfat/dissect/exfat.bin",
    "raw/ext/e2fsprogs/f_badsymlinks2.img",
    "raw/fat/dfir_ntfs/fat12.raw",
    "raw/ntfs/dissect/ntfs.bin",
    "raw/xfs/dissect/xfs_symlink_test1.bin",
    "vhdx/discutils/btrfs.vhdx",
    "vhdx/dfvfs/ntfs-dynamic.vhdx",
]


class Served:
    """A disk as a Device."""

    def __init__(self, disk: Readable) -> None:
        self._disk = disk
        self.size = disk.size

    def read(self, offset: int, length: int) -> bytes:
        return self._disk.read(offset, length)

    def read_cached(self, offset: int, length: int) -> bytes | None:
        return None

    def status(self, offset: int, length: int) -> Iterable[tuple[int, bool]]:
        yield length, False


def all_of(system: FileSystem) -> dict[str, object]:
    """Everything there is to know of each entry, or why it cannot be known."""
    known: dict[str, object] = {}
    for one in walk(system, Found("/", system.root)):
        if not isinstance(one, Found):
            known[one[0]] = str(one[1].error)
            continue
        entry = one.entry
        try:
            contents = []
            if entry.kind is Kind.FILE:
                for stream in ("", *(one.name for one in system.streams(entry))):
                    content = system.open(entry, stream)
                    contents.append((content.size, digest(content), list(content.runs())))
            values = {name: hashlib.sha256(value).hexdigest() for name, value in system.attributes(entry).items()}
            known[one.path] = entry, contents, values, system.metadata(entry)
        except GuestError as error:
            known[one.path] = type(error), str(error)
    return known


def is_no_path(known: object) -> bool:
    """A link that leads to what has a NUL: here only the process is asked, which does not tell such things."""
    return isinstance(known, tuple) and "\0" in (getattr(known[0], "target", None) or "")


@pytest.mark.parametrize("path", IMAGES)
def test_the_process_says_what_the_reader_says(path: str, images: Path) -> None:
    disk: Readable = Image(images / path) if path.startswith("raw/") else open_image(str(images / path))
    here = find_volumes({"vda": disk}).found
    files = GuestFiles({"vda": Served(disk)}, (DeviceError,))
    try:
        there = [volume for volume in files.volumes if volume.kind not in ("unknown", "swap")]
        assert there
        for volume in there:
            local = next(one for one in here if one.name == volume.name)
            wanted, found = all_of(open_file_system(local, here)), all_of(files.system(volume))
            assert len(wanted) > 2
            assert wanted.keys() == found.keys()
            assert {name for name in wanted if wanted[name] != found[name]} == {
                name for name in wanted if is_no_path(wanted[name])
            }
    finally:
        files.close()
