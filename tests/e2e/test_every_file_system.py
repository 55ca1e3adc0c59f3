# SPDX-License-Identifier: AGPL-3.0-or-later
"""Each image format with each file system, at three moments: every file is listed, and is what it was.

One guest has all five file systems, each on a disk of another format; the next one has them the other way round. They are made
by their own tools, and filled and changed through the kernel, ntfs-3g and mtools; what these show is the original.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.guest_images import content_of, empty, mounted, need, run, through_fuse
from tests.long_forms import SOAK, in_soak
from tests.program import Program, await_, ended, qemu_img

FORMATS = {"raw": "raw", "qcow2": "qcow2", "vhd": "vpc", "vhdx": "vhdx", "vmdk": "vmdk"}
"""By our name: QEMU's."""
SYSTEMS = {
    "ext4": (("mkfs.ext4", "-q", "-L", "ext4"), 24),
    "ntfs": (("mkntfs", "-q", "-F", "-L", "ntfs"), 24),
    "xfs": (("mkfs.xfs", "-q", "-L", "xfs"), 300),
    "btrfs": (("mkfs.btrfs", "-q", "-L", "btrfs"), 112),
    "fat32": (("mkfs.fat", "-F", "32", "-s", "1", "-n", "FAT32"), 40),
}
"""How each is made, and its size in MiB."""
MOMENTS = 3
Listing = dict[str, tuple[str, str | int, str]]
"""By path: kind, size or target, SHA-256 of a file."""


class Inside(Protocol):
    """Something to write to a file system with."""

    def write(self, path: str, content: bytes) -> None:
        """A file as a whole, with the folders on the way."""

    def delete(self, path: str) -> None:
        """A file."""

    def rename(self, path: str, name: str) -> None:
        """A file or folder, within its own folder."""

    def listing(self) -> Listing:
        """All that is there."""


class InFolder:
    """Through a folder where it is mounted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, path: str, content: bytes) -> None:
        target = self._folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("r+b" if target.exists() else "wb") as file:  # what is there is changed in its place
            file.write(content)
            file.truncate()

    def delete(self, path: str) -> None:
        (self._folder / path).unlink()

    def rename(self, path: str, name: str) -> None:
        (self._folder / path).rename((self._folder / path).with_name(name))

    def listing(self) -> Listing:
        return listing(self._folder)


class ByMtools:
    """With mtools, without mounting it."""

    def __init__(self, image: Path) -> None:
        self._image = image
        self._passing = image.with_suffix(".passing")
        self._passing.mkdir(exist_ok=True)
        self._folders: set[Path] = set()
        """Those that are known to be there."""

    def write(self, path: str, content: bytes) -> None:
        passing = self._passing / "file"
        passing.write_bytes(content)
        for folder in reversed(Path(path).parents):
            if folder.name and folder not in self._folders:
                self._tool("mmd", "-D", "s", f"::{folder}")
                self._folders.add(folder)
        self._tool("mcopy", "-o", passing, f"::{path}")

    def delete(self, path: str) -> None:
        self._tool("mdel", f"::{path}")

    def rename(self, path: str, name: str) -> None:
        self._tool("mren", f"::{path}", name)

    def listing(self) -> Listing:
        out = self._passing / "out"
        out.mkdir()
        self._tool("mcopy", "-s", "-n", "::*", out)
        found = listing(out)
        shutil.rmtree(out)
        return found

    def _tool(self, tool: str, *words: str | Path) -> None:
        environment = os.environ | {"LC_ALL": "C.UTF-8", "MTOOLS_SKIP_CHECK": "1"}
        command = [tool, "-i", str(self._image), *map(str, words)]
        done = subprocess.run(command, env=environment, capture_output=True, check=False, stdin=subprocess.DEVNULL)
        assert done.returncode == 0 or tool == "mmd", (command, done.stderr)  # 1 from mmd: it is there already


def listing(folder: Path) -> Listing:
    """What is in a folder of this machine's."""
    found: Listing = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place) / name
            key = f"/{path.relative_to(folder)}"
            if path.is_symlink():
                found[key] = "link", os.readlink(path), ""
            elif path.is_dir():
                found[key] = "folder", 0, ""
            else:
                found[key] = "file", path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@contextlib.contextmanager
def inside(name: str, image: Path) -> Iterator[Inside]:
    """The file system in an image, to be written to."""
    if name == "fat32":
        yield ByMtools(image)
    elif name == "ntfs":
        with through_fuse(image, "ntfs-3g") as folder:
            yield InFolder(folder)
    else:
        with mounted(image) as folder:
            yield InFolder(folder)


def change(system: Inside, moment: int) -> None:
    """From one moment to the next: the first fills it."""
    for length in (0, 1, 700, 4096, 70_000, 900_000):
        system.write(f"data/random-{length}", content_of(length + moment, length))
    system.write("data/large", b"".join(content_of(moment if part == 7 * moment else 99, 4096) for part in range(64)))
    system.write(f"data/Grüße 日本語 {moment}.txt", b"name" * moment)
    system.write("a/b/c/log", b"".join(b"a line of moment %d\n" % one * 300 for one in range(moment + 1)))
    for number in range(12):
        system.write(f"many/a rather long name, number {moment * 9 + number}", b"%d" % moment)
    if moment:
        system.delete(f"data/Grüße 日本語 {moment - 1}.txt")
        system.delete(f"many/a rather long name, number {moment}")
        system.rename(f"moved {moment - 1}", f"moved {moment}")
    system.write(f"moved {moment}/{moment}", content_of(moment, 5000))


class Disks:
    """The five file systems of a guest, whose root is the ext4."""

    def __init__(self, folder: Path) -> None:
        need("mcopy", *(command[0] for command, _ in SYSTEMS.values()))
        self._images = {name: folder / f"{name}.img" for name in SYSTEMS}
        for name, (command, size) in SYSTEMS.items():
            run(*command, empty(self._images[name], size << 20))

    def moved_on(self, moment: int) -> Listing:
        """Changes them all; gives what the guest sees then."""
        found: Listing = {}
        for name, image in self._images.items():
            with inside(name, image) as system:
                if name == "ext4" and not moment:
                    others = [one for one in SYSTEMS if one != "ext4"]
                    lines = [
                        f"LABEL={one.upper() if one == 'fat32' else one} /srv/{one} {one} defaults 0 0\n" for one in others
                    ]
                    system.write("etc/fstab", "".join(["LABEL=ext4 / ext4\n", *lines]).encode())
                    for one in others:
                        system.write(f"srv/{one}/covered", b"")
                change(system, moment)
                listed = system.listing()
            if name == "ext4":
                found |= {path: what for path, what in listed.items() if not path.endswith("/covered")}
            else:
                found |= {f"/srv/{name}{path}": what for path, what in listed.items()}
        return found

    def copied(self, folder: Path, shift: int) -> list[str]:
        """Each as an image of a format; as `backup` takes them."""
        disks = []
        for number, (name, image) in enumerate(self._images.items()):
            form = list(FORMATS)[(number + shift) % len(FORMATS)]
            target = folder / f"{name}.{form}"
            qemu_img("convert", "-f", "raw", "-O", FORMATS[form], image, target)
            disks.append(f"vd{'abcde'[number]}={target}")
        return disks


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Path], list[Listing]]]:
    """Folders with the disks of each moment, in all the formats that are tried here, and what the guest saw then."""
    folder = tmp_path_factory.mktemp("disks")
    made, listings, folders = Disks(folder), [], []
    for moment in range(MOMENTS):
        listings.append(made.moved_on(moment))
        for shift in SHIFTS:
            folders.append(folder / f"{moment}-{shift}")
            folders[-1].mkdir()
            made.copied(folders[-1], shift)
    yield folders, listings
    shutil.rmtree(folder)


SHIFTS = range(len(FORMATS)) if SOAK else range(1)


@pytest.mark.parametrize("shift", SHIFTS)
def test_every_file_is_what_it_was(shift: int, disks: tuple[list[Path], list[Listing]], program: Program) -> None:
    folders, listings = disks
    points = []
    for moment in range(MOMENTS):
        images = sorted(folders[moment * len(SHIFTS) + shift].iterdir())
        by_system = {image.stem: image for image in images}
        given = [f"vd{'abcde'[number]}={by_system[name]}" for number, name in enumerate(SYSTEMS)]
        points.append(program.backup("web1", *given)["point"])
    assert len({tuple(sorted(one.items())) for one in listings}) == MOMENTS
    for point, wanted in zip(points, listings, strict=True):
        files = {path for path, what in wanted.items() if what[0] == "file"}
        if SOAK or point == points[-1]:
            listed = program.ok("find", f"web1@{point}:/", "*")
            assert listed["notes"] == []
            shown = {one["path"]: (one["kind"], one["target"] or one["size"]) for one in listed["found"]}
            assert {path: what[0] for path, what in shown.items()} == {path: what[0] for path, what in wanted.items()}
            assert {path: shown[path][1] for path in files} == {path: wanted[path][1] for path in files}
        out = program.folder / "out"
        copied = program.ok("cp", "-r", f"web1@{point}:/", out)
        assert (copied["files"], copied["problems"]) == (len(files), [])
        assert listing(out) == wanted
        shutil.rmtree(out)


@in_soak
def test_an_encrypted_volume_is_opened_by_who_has_its_key(program: Program, tmp_path: Path) -> None:
    """A LUKS that QEMU made: named as such, and reached as the error says."""
    luks, place = tmp_path / "luks", tmp_path / "socket"
    secret = ("--object", "secret,id=key,data=the key")
    qemu_img("create", "-f", "luks", *secret, "-o", "key-secret=key,iter-time=10", luks, "1M")
    opened = (*secret, "--image-opts", "-c")
    run("qemu-io", *opened, "write -P 0x5a 0 64k", f"driver=luks,key-secret=key,file.filename={luks}")
    program.backup("web1", f"vda={luks}")
    done = program.run("ls", "web1/vda:/p0")
    assert done.code == 1
    assert "web1/vda:/p0 is encrypted (LUKS)" in done.err
    assert "everywhen serve nbd web1/vda --socket PATH" in done.err
    serving = program.start("serve", "nbd", "web1/vda", "--socket", place)
    try:
        await_(serving, place.exists)
        device = f"driver=luks,read-only=on,key-secret=key,file.driver=nbd,file.server.type=unix,file.server.path={place}"
        assert "64 KiB" in run("qemu-io", "-r", *opened, "read -P 0x5a 0 64k", device)
    finally:
        serving.terminate()
        ended(serving)
