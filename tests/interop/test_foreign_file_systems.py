# SPDX-License-Identifier: AGPL-3.0-or-later
"""File systems in images that other projects test their readers with: each file as it is in lists made with other readers.

What is not the same is listed in docs/guest-files.md, with the reason; each of these must really differ.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from everywhen.block.image_errors import ImageUnsupported
from everywhen.block.open_image import open_image
from everywhen.guest.content import Inline
from everywhen.guest.errors import GuestError
from everywhen.guest.ntfs_packed import OverlayContent
from everywhen.guest.reading import Cached, Window
from everywhen.guest.recognition import Role, recognise
from everywhen.guest.tree import Entry, FileSystem, Kind, Readable, Unreadable
from everywhen.guest.volumes import Volume, find_volumes, open_file_system
from everywhen.guest.walking import Found, walk
from tests.foreign_images import listed_images, needs_images
from tests.guest_images import Image, digest
from tests.long_forms import SOAK

pytestmark = needs_images

DOCS = Path(__file__).parents[2] / "docs" / "guest-files.md"
LONG = ("f_h_badnode", "f_h_normal", "020-extent-ref-cases", "test_disk1", "discutils__xfs")
KINDS = {"dir": Kind.FOLDER, "subvol": Kind.FOLDER, "file": Kind.FILE, "link": Kind.LINK, "symlink": Kind.LINK}
EXACT = 2.1
"""Seconds: FAT has even ones only, and some lists have rounded ones."""


def _manifests() -> list[tuple[str, str]]:
    """Image and list. Those of a state after its journal was replayed are another test's."""
    found = [(entry["path"], name) for entry in listed_images() for name in entry["manifests"] if "#journal" not in name]
    return [(path, name) for path, name in found if SOAK or not any(word in name for word in LONG)]


def _excepted() -> set[str]:
    """The images that the documentation lists."""
    section = DOCS.read_text().partition("## Seen on others' images")[2]
    return {path for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for path in re.findall(r"`([^`]+)`", row)}


def _disk(images: Path, path: str) -> Readable:
    return Image(images / path) if path.startswith("raw/") else open_image(str(images / path))


def _list(images: Path, name: str) -> dict[str, Any]:
    plain = images / "manifests" / name.removesuffix(".gz")
    content = plain.read_bytes() if plain.exists() else gzip.decompress(plain.with_name(f"{plain.name}.gz").read_bytes())
    listed: dict[str, Any] = json.loads(content)
    return listed


def differences(disk: Readable, listed: dict[str, Any]) -> Iterator[str]:
    """What is not as the list says."""
    start = listed["offset"]
    part = Cached(Window(disk, start, disk.size - start))
    try:
        kind, role = recognise(part)
        system = open_file_system(Volume("p0", ("vda",), part.size, kind, role, part))
    except GuestError as error:
        yield f"cannot be opened: {error}"
        return
    shown: dict[str, Entry] = {}
    unread: dict[str, Unreadable] = {}
    for item in walk(system, Found("/", system.root)):
        if isinstance(item, Found):
            shown[item.path] = item.entry
        else:
            unread[item[0]] = item[1]
    wanted = {one["path"]: one for one in listed["entries"]}
    yield from (f"{path}: not there ({wanted[path]['type']})" for path in sorted(wanted.keys() - shown.keys()))
    yield from (f"{path}: there, though not in the list" for path in sorted(shown.keys() - wanted.keys()))
    for path in sorted(wanted.keys() & shown.keys()):
        yield from _entry_differences(system, shown[path], wanted[path])


def _entry_differences(system: FileSystem, entry: Entry, wanted: dict[str, Any]) -> Iterator[str]:
    path, digests = wanted["path"], ""
    if entry.kind is Kind.FILE:
        try:
            digests = digest(system.open(entry))
        except GuestError as error:
            digests = f"error: {error}"
    if wanted["type"] == "err":
        if not digests.startswith("error"):
            yield f"{path}: read without an error"
        return
    if entry.kind is not KINDS.get(wanted["type"], wanted["type"]):
        yield f"{path}: a {entry.kind}, not a {wanted['type']}"
    if "sha256" in wanted and (digests, entry.size) != (wanted["sha256"], wanted["size"]):
        yield f"{path}: {entry.size} bytes, {digests}, not {wanted['size']}, {wanted['sha256']}"
    if "target" in wanted:
        # ntfs-3g shows where links lead on the machine that has it mounted
        same = str(wanted["target"]).rpartition("/")[2] if system.kind == "ntfs" else wanted["target"]
        if not str(entry.target).replace("\\", "/").endswith(same) or (system.kind != "ntfs" and entry.target != same):
            yield f"{path}: leads to {entry.target}, not {wanted['target']}"
    if wanted.get("mft", entry.number) != entry.number:
        yield f"{path}: record {entry.number}, not {wanted['mft']}"
    if entry.mode is not None and int(wanted.get("mode", hex(entry.mode)), 0) != entry.mode:
        yield f"{path}: mode {entry.mode:#o}, not {wanted['mode']}"
    if "xattr" in wanted:
        values = {name: value.hex() for name, value in system.attributes(entry).items()}
        if values != wanted["xattr"]:
            yield f"{path}: attributes {values}, not {wanted['xattr']}"
    if "mtime" in wanted and abs((entry.times.modified or 0) / 1e9 - wanted["mtime"]) > EXACT:
        yield f"{path}: changed at {entry.times.modified}, not {wanted['mtime']}"


@pytest.mark.parametrize(("path", "name"), _manifests())
def test_all_files_are_as_listed(path: str, name: str, images: Path) -> None:
    try:
        disk = _disk(images, path)
    except ImageUnsupported as error:
        found = [str(error)]
    else:
        found = list(differences(disk, _list(images, name)))
    assert bool(found) == (path in _excepted()), found


def test_only_images_that_are_there_are_excepted() -> None:
    assert _excepted() <= {entry["path"] for entry in listed_images()}


PARTITIONS = {
    "raw/part/dfvfs/gpt.raw": {"p1": "ext", "p2": "ext"},
    "raw/part/dfvfs/gpt_non_sequential.raw": {"p1": "unknown", "p3": "unknown"},
    "raw/part/dfvfs/mbr.raw": {"p1": "ext", "p5": "ext"},
    "raw/part/dfir_ntfs/mbr-512-p0.bin": {"p0": "unknown"},
    "raw/part/dfir_ntfs/mbr-512-p1e2_2.bin": {"p1": "unknown", "p5": "unknown", "p6": "unknown"},
    "raw/part/dfir_ntfs/mbr-512-p4.bin": dict.fromkeys(("p1", "p2", "p3", "p4"), "unknown"),
    "raw/part/util-linux/dos+bsd.img": {"p1": "unknown", "p2": "unknown"},
    "vhdx/discutils/vhdx-log-replay.vhdx": {"p1": "unknown", "p2": "unknown"},
    "vmdk/plaso/multi_partition_image.vmdk": {"p1": "ntfs", "p2": "ntfs"},
    "raw/crypt/util-linux/bitlocker-win7.img": {"p0": "BitLocker"},
    "raw/crypt/util-linux/luks1.img": {"p0": "LUKS"},
    "raw/lvm/dfvfs/lvm.raw": {
        "p0": "LVM",
        "test_volume_group-test_logical_volume1": "ext",
        "test_volume_group-test_logical_volume2": "unknown",
    },
    "raw/lvm/dissect/lvm.bin": {"p0": "LVM", "vg_test-lv_test": "unknown"},
    **{
        f"raw/other/util-linux/{image}.img": {"p0": kind}
        for image, kind in {
            "apfs": "APFS",
            "bcachefs-2": "bcachefs",
            "f2fs": "F2FS",
            "gfs2": "GFS2",
            "hpfs": "HPFS",
            "isw-raid": "Intel RAID",
            "jfs": "JFS",
            "mdraid": "Linux RAID",
            "ocfs2": "OCFS2",
            "reiser3": "ReiserFS",
            "zfs": "ZFS",
        }.items()
    },
}


@pytest.mark.parametrize("path", PARTITIONS)
def test_volumes(path: str, images: Path) -> None:
    found = find_volumes({"vda": _disk(images, path)})
    assert {volume.name: volume.kind for volume in found.found} == PARTITIONS[path]
    for volume in found.found:
        if volume.role is not Role.FILES:
            with pytest.raises(GuestError, match=r"device|volume group|partition|swap"):
                open_file_system(volume)


@pytest.mark.parametrize(
    ("path", "name", "sum_"),
    [
        ("raw/lvm/dissect/lvm.bin", "vg_test-lv_test", "dffad29594c30648611f56c4122ed557bdfd08bb178ce28d22436009bd7c4a1a"),
        (
            "raw/lvm/dfvfs/lvm.raw",
            "test_volume_group-test_logical_volume1",
            "1a029ea8a46eb7abf0c36fe7c6af6ca12cc3d33e8026fc9df01f9f334c216b18",
        ),
    ],
)
def test_logical_volumes(path: str, name: str, sum_: str, images: Path) -> None:
    volumes = find_volumes({"vda": _disk(images, path)}).found
    content = next(volume.content for volume in volumes if volume.name == name)

    class Whole:
        size = content.size
        read = staticmethod(content.read)
        runs = staticmethod(lambda: iter(()))

    assert digest(Whole()) == sum_


def test_what_windows_packed_with_xpress(images: Path) -> None:
    packed = (images / "raw/ntfs/dissect/test8k.txt_WofCompressedData").read_bytes()
    content = OverlayContent(Inline(packed), 32_832, 2, "file")
    assert content.read(0, 40_000) == b"KUSJESVANSRT" * 2736
    assert content.read(20_001, 5) == (b"KUSJESVANSRT" * 2736)[20_001:20_006]
    with pytest.raises(GuestError, match="LZX"):
        OverlayContent(Inline(packed), 32_832, 1, "file")


def test_every_image_ends_quickly(images: Path) -> None:
    """All of them, whatever they are: volumes are found, folders listed, and nothing but a GuestError is raised."""
    for entry in listed_images():
        path = entry["path"]
        if path.partition("/")[0] != "raw" or (not SOAK and any(word in path.replace("/", "__") for word in LONG)):
            continue
        for volume in find_volumes({"vda": Image(images / path)}).found:
            try:
                system = open_file_system(volume)
                for item in walk(system, Found("/", system.root)):
                    if isinstance(item, Found) and item.entry.kind is Kind.FILE:
                        system.open(item.entry).read(0, 1 << 16)
            except GuestError:
                continue
