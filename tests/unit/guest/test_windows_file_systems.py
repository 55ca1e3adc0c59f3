# SPDX-License-Identifier: AGPL-3.0-or-later
"""NTFS, FAT and exFAT made by the tools that Linux has for them, and filled with these."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from everywhen.formats.filesystems.exfat import decode_boot_sector
from everywhen.formats.filesystems.fat import dos_time
from everywhen.guest.errors import NoSuchPath, WrongKind
from everywhen.guest.tree import Entry, Kind
from everywhen.guest.walking import find
from tests.guest_images import (
    Bytes,
    Image,
    compare,
    content_of,
    digest,
    empty,
    entries,
    exfat_mounted,
    fill,
    fill_sparse,
    need,
    opened,
    run,
    through_fuse,
)
from tests.long_forms import SOAK


@pytest.fixture
def ntfs(tmp_path: Path) -> Path:
    need("mkntfs")
    image = empty(tmp_path / "ntfs.img", 40 << 20)
    run("mkntfs", "-q", "-F", "-L", "Daten ü", "-c", "4096", image)
    return image


def test_ntfs(ntfs: Path) -> None:
    with through_fuse(ntfs, "ntfs-3g", "-o", "streams_interface=windows,compression,special_files=wsl") as folder:
        fill(folder)
        fill_sparse(folder)
        os.link(folder / "random-700", folder / "second name")
        (folder / "random-50:stream").write_bytes(content_of(5, 100))
        (folder / "random-50:large stream").write_bytes(content_of(6, 50_000))
        packed = folder / "packed"
        packed.mkdir()
        os.setxattr(packed, "system.ntfs_attrib_be", struct.pack(">I", 0x810))
        (packed / "text").write_bytes(b"the same line again and again\n" * 30_000)
        (packed / "random").write_bytes(content_of(7, 300_000))
        with (packed / "both").open("wb") as file:
            file.write(b"text " * 40_000 + content_of(8, 100_000))
            file.truncate(2 << 20)
        (folder / "short").symlink_to("a/b")
    system = opened(Image(ntfs))
    assert (system.kind, system.label, system.notes) == ("ntfs", "Daten ü", ())
    assert system.uuid in run("blkid", "-p", "-o", "export", ntfs)
    with through_fuse(ntfs, "ntfs-3g", "-o", "ro,streams_interface=windows,special_files=wsl") as folder:
        compare(system, folder, unix=False)
        status = os.stat(folder / "random-700")
    entry = find(system, "/RANDOM-700").entry
    assert (entry.name, entry.links) == ("random-700", 2)
    assert entry.times.modified == status.st_mtime_ns // 100 * 100
    assert entry.identity == find(system, "/second name").entry.identity
    streamed = find(system, "/random-50").entry
    assert {one.name: one.size for one in system.streams(streamed)} == {"stream": 100, "large stream": 50_000}
    assert system.open(streamed, "Stream").read(0, 1000) == content_of(5, 100)
    assert system.open(streamed, "large stream").read(1, 49_000) == content_of(6, 50_000)[1:49_001]
    with pytest.raises(WrongKind, match="no such stream"):
        system.open(streamed, "another")
    with pytest.raises(NoSuchPath) as caught:
        find(system, "/a/b/not there/c")
    assert caught.value.nearest == "/a/b"


def test_ntfs_shows_only_what_is_packed_in_the_runs_of_packed_files(ntfs: Path) -> None:
    with through_fuse(ntfs, "ntfs-3g", "-o", "compression") as folder:
        os.setxattr(folder, "system.ntfs_attrib_be", struct.pack(">I", 0x810))
        (folder / "text").write_bytes(b"the same line again and again\n" * 30_000)
    system = opened(Image(ntfs))
    content = system.open(find(system, "/text").entry)
    runs = list(content.runs())
    assert sum(run.length for run in runs) == content.size
    assert sum(run.stored.length for run in runs if run.stored) < content.size // 4


def test_ntfs_has_zeroes_behind_the_length_that_was_written(ntfs: Path) -> None:
    """As Windows makes them: the size is set first, and clusters that were another file's are given to it."""
    with through_fuse(ntfs, "ntfs-3g") as folder:
        (folder / "file").write_bytes(content_of(1, 50_000))
    image = bytearray(ntfs.read_bytes())
    sizes = struct.pack("<QQ", 50_000, 50_000)
    assert image.count(sizes) == 1
    at = image.index(sizes)
    image[at + 8 : at + 16] = struct.pack("<Q", 20_000)
    system = opened(Bytes(bytes(image)))
    content = system.open(find(system, "/file").entry)
    assert content.read(0, 60_000) == content_of(1, 50_000)[:20_000] + bytes(30_000)
    assert content.read(30_000, 10) == bytes(10)
    assert [(run.length, run.zero) for run in content.runs()] == [(20_000, False), (30_000, True)]


def test_ntfs_files_with_an_attribute_list(ntfs: Path) -> None:
    """Two files written by turns are in so many pieces that one record does not hold what says where."""
    with through_fuse(ntfs, "ntfs-3g") as folder:
        with (folder / "one").open("wb", buffering=0) as one, (folder / "two").open("wb", buffering=0) as two:
            for number in range(1500):
                one.write(content_of(number, 4096))
                two.write(content_of(-number, 4096))
        for number in range(40):
            os.link(folder / "one", folder / f"another long name of the first file, number {number}")
    system = opened(Image(ntfs))
    for name, sign in (("one", 1), ("two", -1)):
        content = system.open(find(system, f"/{name}").entry)
        assert content.read(0, 1500 * 4096) == b"".join(content_of(sign * number, 4096) for number in range(1500))
    entry = find(system, "/one").entry
    assert entry.links == 41
    assert len(system.metadata(entry)) > 1
    assert len(entries(system)) == 42


def test_ntfs_whose_list_of_files_is_in_hundreds_of_pieces(tmp_path: Path) -> None:
    need("mkntfs")
    image = empty(tmp_path / "ntfs.img", 12 << 20)
    run("mkntfs", "-q", "-F", "-c", "512", "-z", "1", image)
    with through_fuse(image, "ntfs-3g") as folder:
        with contextlib.suppress(OSError):  # until it is full
            for number in range(4000):
                (folder / f"fill {number}").write_bytes(b"x" * (900 if number % 2 else 3000))
        for path in list(folder.glob("fill *[02468]")):
            path.unlink()
        with contextlib.suppress(OSError):
            for number in range(4000):
                (folder / f"a rather long name of an empty file, number {number}").write_bytes(b"")
    system = opened(Image(image))
    assert sum(1 for _ in system.open(find(system, "/$MFT").entry).runs()) > 50
    assert len(system.metadata(find(system, "/$MFT").entry)) > 1  # its first record does not hold them
    with through_fuse(image, "ntfs-3g", "-o", "ro") as folder:
        assert {entry.name for entry in entries(system).values()} == set(os.listdir(folder))
        for name in sorted(os.listdir(folder))[::50]:
            content = system.open(find(system, f"/{name}").entry)
            assert content.read(0, 5000) == (folder / name).read_bytes()


def test_ntfs_names_of_files_that_are_gone_are_not_shown(ntfs: Path) -> None:
    with through_fuse(ntfs, "ntfs-3g") as folder:
        many = folder / "many"
        many.mkdir()
        for number in range(800):
            (many / f"a file that will be deleted {number}").write_bytes(b"")
        for number in range(800):
            if number != 5:
                (many / f"a file that will be deleted {number}").unlink()
    assert set(entries(opened(Image(ntfs)))) == {"/many", "/many/a file that will be deleted 5"}


def test_ntfs_that_is_in_use_is_said(ntfs: Path) -> None:
    image = bytearray(ntfs.read_bytes())
    system = opened(Bytes(bytes(image)))
    assert system.notes == ()
    log = next(iter(system.open(find(system, "/$LogFile").entry).runs())).stored
    assert log
    for user, flags, clean in ((0, 0, False), (0, 2, True), (0xFFFF, 0, True)):
        page = bytearray(4096)
        struct.pack_into("<4sHHQIIH", page, 0, b"RSTR", 30, 9, 0, 4096, 4096, 48)
        struct.pack_into("<QHHHH", page, 48, 1000 + user, 1, 0xFFFF, user, flags)
        image[log.place : log.place + 4096] = page
        assert (opened(Bytes(bytes(image))).notes == ()) == clean


FATS = (("12", 4), ("16", 20), ("32", 40)) if SOAK else (("12", 4), ("32", 40))


@pytest.mark.parametrize(("bits", "size"), FATS)
def test_fat(bits: str, size: int, tmp_path: Path) -> None:
    need("mkfs.fat", "mcopy")
    image = empty(tmp_path / "fat.img", size << 20)
    run("mkfs.fat", "-F", bits, "-n", "LABEL", "-i", "1a2b3c4d", *(("-s", "1") if bits == "32" else ()), image)
    source = tmp_path / "source"
    source.mkdir()
    fill(source)
    (source / "UPPER.TXT").write_bytes(b"upper")
    (source / "lower.txt").write_bytes(b"lower")
    os.utime(source / "lower.txt", (1_700_000_000, 1_700_000_000))
    (source / "gone and forgotten").write_bytes(content_of(4, 100_000))
    run("env", "TZ=UTC", "LC_ALL=C.UTF-8", "mcopy", "-s", "-m", "-i", image, *sorted(source.iterdir()), "::")
    run("mdel", "-i", image, "::gone and forgotten")
    (source / "gone and forgotten").unlink()
    system = opened(Image(image))
    assert (system.kind, system.label, system.uuid) == (f"fat{bits}", "LABEL", "1A2B-3C4D")
    assert system.local_times
    compare(system, source, unix=False)
    entry = find(system, "/LOWER.TXT").entry
    assert entry.times.modified == 1_700_000_000 * 10**9
    assert find(system, "/RANDOM~1").entry.kind is Kind.FILE  # its short name


def test_exfat(tmp_path: Path) -> None:
    need("mkfs.exfat")
    image = empty(tmp_path / "exfat.img", 40 << 20)
    run("mkfs.exfat", "-L", "Label ü", image)
    with exfat_mounted(image) as folder:
        fill(folder)
        (folder / "gone").write_bytes(content_of(4, 100_000))
        (folder / "gone").unlink()
        with (folder / "one").open("wb", buffering=0) as one, (folder / "two").open("wb", buffering=0) as two:
            for number in range(200):
                one.write(content_of(number, 4096))
                two.write(content_of(-number, 4096))
        os.utime(folder / "one", (1_700_000_000, 1_700_000_000))
    system = opened(Image(image))
    assert (system.kind, system.label) == ("exfat", "Label ü")
    assert system.uuid in run("blkid", "-p", "-o", "export", image)
    with exfat_mounted(image, "-o", "ro") as folder:
        compare(system, folder, unix=False)
    entry = find(system, "/ONE").entry
    assert entry.times.modified == 1_700_000_000 * 10**9
    assert digest(system.open(entry)) == hashlib.sha256(b"".join(content_of(number, 4096) for number in range(200))).hexdigest()


def test_exfat_has_zeroes_behind_the_length_that_was_written(tmp_path: Path) -> None:
    need("mkfs.exfat")
    image = empty(tmp_path / "exfat.img", 20 << 20)
    run("mkfs.exfat", image)
    with exfat_mounted(image) as folder:
        (folder / "file").write_bytes(content_of(1, 50_000))
    data = bytearray(image.read_bytes())
    at = data.index(struct.pack("<Q", 50_000))
    data[at : at + 8] = struct.pack("<Q", 20_000)
    system = opened(Bytes(bytes(data)))
    content = system.open(find(system, "/file").entry)
    assert content.read(0, 60_000) == content_of(1, 50_000)[:20_000] + bytes(30_000)


def test_times_that_do_not_exist_are_none() -> None:
    assert dos_time(0, 0) is None
    assert dos_time(13 << 5 | 1, 0) is None
    noon = dt.datetime(2000, 2, 29, 12, 0, 2, tzinfo=dt.UTC)
    assert dos_time(20 << 9 | 2 << 5 | 29, 12 << 11 | 1, 150) == int(noon.timestamp()) * 10**9 + 1_500_000_000


def test_exfat_records_that_go_on_in_the_next_cluster(tmp_path: Path) -> None:
    """Of a folder whose clusters follow each other the table says nothing, or something old."""
    need("mkfs.exfat")
    image = empty(tmp_path / "exfat.img", 20 << 20)
    run("mkfs.exfat", "-c", "4096", image)
    with exfat_mounted(image) as folder:
        many = folder / "many"
        many.mkdir()
        for number in range(200):
            (many / f"a name of 41 characters, with a number {number:03}").write_bytes(b"%d" % number)
    data = bytearray(image.read_bytes())
    boot = decode_boot_sector(bytes(data[:512]))
    many_ = find(opened(Bytes(bytes(data))), "/many").entry
    cluster, content, size = many_.number // 2, b"", boot.cluster_size
    while cluster < 0xFFFFFFF7:
        content += data[boot.heap + (cluster - 2) * size : boot.heap + (cluster - 1) * size]
        (cluster,) = struct.unpack_from("<I", data, boot.table_place + 4 * cluster)
    first = boot.clusters - 20
    place = boot.heap + (first - 2) * size
    data[place : place + len(content)] = content
    for value in (0, 5, first + 7, 0xFFFFFFFF):
        struct.pack_into("<20I", data, boot.table_place + 4 * first, *[value] * 20)
        system = opened(Bytes(bytes(data)))
        shown = list(system.entries(replace(many_, number=2 * first + 1, size=len(content))))
        assert len(shown) == 200
        for entry in shown:
            assert isinstance(entry, Entry)
            assert system.open(entry).read(0, 10) == b"%d" % int(entry.name[-3:])
