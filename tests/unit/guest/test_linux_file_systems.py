# SPDX-License-Identifier: AGPL-3.0-or-later
"""ext2, ext3, ext4, XFS and Btrfs made by their own tools and filled by the kernel: everything is there, and as it was."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from everywhen.guest.errors import GuestError, GuestUnsupported
from everywhen.guest.tree import Entry, Kind
from everywhen.guest.volumes import find_volumes, open_file_system
from everywhen.guest.walking import find
from tests.guest_images import (
    Image,
    compare,
    content_of,
    empty,
    fill,
    fill_sparse,
    fill_unix,
    mounted,
    need,
    opened,
    run,
    written_and_dropped,
)
from tests.long_forms import SOAK


@dataclass(frozen=True)
class Form:
    """How a file system is made: its tool and options, size in MiB, options for mounting."""

    name: str
    command: tuple[str, ...]
    kind: str
    size: int = 48
    mount: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name


FORMS = (
    Form("ext2-1k", ("mkfs.ext2", "-q", "-b", "1024", "-L", "label"), "ext2"),
    Form("ext3", ("mkfs.ext3", "-q", "-b", "4096", "-L", "label"), "ext3"),
    Form("ext4", ("mkfs.ext4", "-q", "-L", "label"), "ext4"),
    Form("ext4-inline", ("mkfs.ext4", "-q", "-O", "inline_data,metadata_csum", "-I", "512", "-L", "label"), "ext4"),
    Form("ext4-bigalloc", ("mkfs.ext4", "-q", "-O", "bigalloc,ea_inode,^resize_inode", "-C", "16384", "-L", "label"), "ext4"),
    Form("ext4-1k-meta-bg", ("mkfs.ext4", "-q", "-b", "1024", "-O", "meta_bg,^resize_inode", "-L", "label"), "ext4"),
    Form("xfs", ("mkfs.xfs", "-q", "-L", "label"), "xfs", 320),
    Form("xfs-1k-dir8k", ("mkfs.xfs", "-q", "-b", "size=1024", "-n", "size=8192", "-i", "size=512", "-L", "label"), "xfs", 320),
    Form("btrfs", ("mkfs.btrfs", "-q", "-L", "label"), "btrfs", 128),
    Form("btrfs-zlib", ("mkfs.btrfs", "-q", "-M", "-L", "label"), "btrfs", 128, ("compress-force=zlib",)),
    Form("btrfs-zstd", ("mkfs.btrfs", "-q", "-n", "4096", "-L", "label"), "btrfs", 128, ("compress-force=zstd",)),
    Form("btrfs-lzo", ("mkfs.btrfs", "-q", "-L", "label"), "btrfs", 128, ("compress-force=lzo",)),
)

QUICK = ("ext2-1k", "ext4-inline", "ext4-1k-meta-bg", "xfs-1k-dir8k", "btrfs-zstd")
"""Without EVERYWHEN_SOAK; together they have what the others have one by one."""


def made(form: Form, folder: Path, fillers: list[Callable[[Path], None]]) -> Path:
    """An image of this form, filled."""
    need(form.command[0])
    image = empty(folder / f"{form.name}.img", form.size << 20)
    run(*form.command, image)
    with mounted(image, *form.mount) as inside:
        for filler in fillers:
            filler(inside)
    return image


def stale(folder: Path) -> None:
    """A file that was allocated and never written, where something else had been."""
    written_and_dropped(folder, 48 << 20)
    with (folder / "allocated").open("wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, 8 << 20)
        except OSError:
            return
        os.pwrite(file.fileno(), content_of(9, 6000), 1 << 20)


def fragmented(folder: Path) -> None:
    """A file in so many pieces that a tree says where they are; from its end on, or XFS allocates what may come next, too."""
    with (folder / "fragmented").open("wb") as file:
        for number in reversed(range(700)):
            os.pwrite(file.fileno(), content_of(number, 4096), number * 12288)


def large_attributes(folder: Path) -> None:
    """As many and as large as the file system takes."""
    for number in range(12):
        with contextlib.suppress(OSError):
            os.setxattr(folder / "random-1", f"user.large {number}", content_of(number, 3500 * number))


@pytest.mark.parametrize("form", [form for form in FORMS if SOAK or form.name in QUICK], ids=str)
def test_everything_is_as_the_kernel_shows_it(form: Form, tmp_path: Path) -> None:
    image = made(form, tmp_path, [stale, fill, fill_unix, fragmented, large_attributes])
    system = opened(Image(image))
    assert (system.kind, system.label, system.notes) == (form.kind, "label", ())
    assert system.uuid in run("blkid", "-p", "-o", "export", image)
    with mounted(image, "ro", *form.mount) as inside:
        compare(system, inside)
    assert find(system, "/to folder/d/deep").entry.size == 4
    assert find(system, "/second name").entry.identity == find(system, "/random-700").entry.identity
    if form.kind != "btrfs":
        assert b"STALE" in image.read_bytes()


@pytest.mark.parametrize("form", [form for form in FORMS if form.name in ("ext4", "xfs", "ext2-1k")], ids=str)
def test_runs_say_where_contents_are_and_metadata_what_says_so(form: Form, tmp_path: Path) -> None:
    image = made(form, tmp_path, [fill, fill_sparse, fragmented])
    disk = Image(image)
    system = opened(disk)
    for name in ("random-1300000", "sparse", "fragmented"):
        entry = find(system, f"/{name}").entry
        content = system.open(entry)
        for one in content.runs():
            if one.stored:
                assert disk.read(one.stored.place, one.length) == content.read(one.start, one.length)
        spans = system.metadata(entry)
        assert spans
        assert (len(spans) > 1) == (name == "fragmented" or form.kind == "ext2"), (name, spans)
    own = system.metadata(find(system, "/text").entry)[0]
    before = disk.read(own.place, own.length)
    with mounted(image) as inside, (inside / "text").open("ab") as file:
        file.write(b"more")
    assert Image(image).read(own.place, own.length) != before


@pytest.mark.parametrize(
    ("form", "place", "value"),
    [("ext4", 1024 + 99, 0x80), ("ext4", 1024 + 96, 0x01), ("xfs", 218, 0x80), ("btrfs", 65536 + 189, 0x40)],
)
def test_features_that_are_not_known_are_said(form: str, place: int, value: int, tmp_path: Path) -> None:
    image = made(next(one for one in FORMS if one.name == form), tmp_path, [])
    with image.open("r+b") as file:
        file.seek(place)
        old = file.read(1)[0]
        file.seek(place)
        file.write(bytes([old | value]))
    with pytest.raises(GuestUnsupported, match="features that are not read here"):
        opened(Image(image))


def test_the_journal_of_another_file_system_is_none(tmp_path: Path) -> None:
    image = empty(tmp_path / "journal.img", 4 << 20)
    run("mke2fs", "-q", "-O", "journal_dev", image)
    with pytest.raises(GuestUnsupported, match="the journal of another file system of ext"):
        opened(Image(image))


def test_what_is_not_unmounted_is_said(tmp_path: Path) -> None:
    for form in FORMS:
        if form.name == "ext4":
            image = made(form, tmp_path, [fill])
            copy = tmp_path / "copy.img"
            with mounted(image) as inside:
                (inside / "new").write_bytes(b"new")
                os.sync()
                run("cp", "--sparse=always", image, copy)
            assert "not unmounted" in " ".join(opened(Image(copy)).notes)
            assert opened(Image(image)).notes == ()


def test_subvolumes_and_snapshots_are_folders(tmp_path: Path) -> None:
    need("btrfs")
    form = next(form for form in FORMS if form.name == "btrfs")

    def subvolumes(folder: Path) -> None:
        run("btrfs", "subvolume", "create", folder / "home")
        (folder / "home" / "file").write_bytes(b"before")
        run("btrfs", "subvolume", "create", folder / "home" / "nested")
        (folder / "home" / "nested" / "file").write_bytes(b"nested")
        run("btrfs", "subvolume", "snapshot", "-r", folder / "home", folder / "snapshot")
        (folder / "home" / "file").write_bytes(b"after")

    image = made(form, tmp_path, [subvolumes])
    system = opened(Image(image))
    assert system.subvolume(None) == system.subvolume(5) == system.root
    file, old = (find(system, f"/{name}/file").entry for name in ("home", "snapshot"))
    assert file.number == old.number
    assert file.identity != old.identity
    assert (system.open(file).read(0, 9), system.open(old).read(0, 9)) == (b"after", b"before")
    assert find(system, "/home").entry.kind is Kind.FOLDER
    assert find(system, "/home/nested/file").entry.size == 6
    assert list(system.entries(find(system, "/snapshot/nested").entry)) == []  # as in Linux
    nested = find(system, "/home/nested").entry
    assert system.subvolume(nested.subvolume).identity == nested.identity
    with pytest.raises(GuestError, match="subvolume 999 is not there"):
        system.subvolume(999)
    with mounted(image) as inside:
        run("btrfs", "subvolume", "set-default", inside / "home" / "nested")
    system = opened(Image(image))
    assert system.subvolume(None).identity == nested.identity
    assert [one.name for one in system.entries(system.subvolume(None)) if isinstance(one, Entry)] == ["file"]


@pytest.mark.parametrize("profile", ["raid0", "raid1", "raid10", "raid5", "raid6"] if SOAK else ["raid0"])
def test_btrfs_over_several_disks(profile: str, tmp_path: Path) -> None:
    need("mkfs.btrfs")
    count = {"raid10": 4, "raid5": 3, "raid6": 4}.get(profile, 2)
    images = [empty(tmp_path / f"{number}.img", 128 << 20) for number in range(count)]
    run("mkfs.btrfs", "-q", "-d", profile, "-m", "raid1", *images)
    loops: list[str] = []
    try:
        if os.geteuid():
            pytest.skip("only root may mount")
        for image in images[1:]:
            loops.append(run("losetup", "-f", "--show", image).strip())
            run("btrfs", "device", "scan", loops[-1])
        with mounted(images[0]) as inside:
            fill(inside)
        with mounted(images[0], "ro") as inside:
            found = find_volumes({f"vd{number}": Image(image) for number, image in enumerate(images)}).found
            compare(open_file_system(found[0], found), inside)
            if count > 2:
                return
            alone = open_file_system(found[1])
            assert "devices" in alone.notes[0]
            if profile == "raid0":
                with pytest.raises(GuestError, match="device 1 of this Btrfs"):
                    alone.open(find(alone, "/random-1300000").entry).read(0, 1_300_000)
    finally:
        for loop in loops:
            subprocess.run(["btrfs", "device", "scan", "-u", loop], check=False, capture_output=True)
            subprocess.run(["losetup", "-d", loop], check=False)
