# SPDX-License-Identifier: AGPL-3.0-or-later
"""A guest's files in a mounted folder: what this machine's kernel wrote into the image is what this machine's kernel reads
through the mount, and nothing there leads out of the guest."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guest_images import below, content_of, empty, fill, fill_unix, mounted, need, partitioned, run, status_of
from tests.long_forms import in_soak
from tests.mounts import Mount, can_mount
from tests.program import Program

pytestmark = can_mount

ROOT = "11111111-2222-3333-4444-555555555555"
JOURNAL = bytes.fromhex("c03b399800000004")
"""With what a journal of ext4 begins."""
LINKS = {
    "absolute": ("/etc/hosts", "../../etc/hosts", "the guest's hosts"),
    "far up": ("../../../../../etc/hosts", "../../etc/hosts", "the guest's hosts"),
    "up behind a link": ("folder/../../../../etc/hosts", "../../etc/hosts", "the guest's hosts"),
    "up behind nothing": ("nothing/../../../../../etc/hostname", "../../etc/hostname", None),
    "folder": ("/etc", "../../etc", None),
    "as it is": ("../b/./other", "../b/./other", "other"),
    "to the root": ("/", "../..", None),
}
"""In /a/links: where they lead in the guest, what is shown, and what is read there."""


@dataclass
class Guest:
    """A VM with two moments: the folders `then-0` and `then-1` are copies of what the kernel had in the file system."""

    program: Program
    folder: Path
    disk: Path
    """As it was at the second one."""

    def then(self, number: int) -> Path:
        return self.folder / f"then-{number}"


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    folder = tmp_path_factory.mktemp("guest")
    program = Program(folder).init()
    image = empty(folder / "root.img", 32 << 20)
    run("mkfs.ext4", "-q", "-U", ROOT, image)
    swap = empty(folder / "swap.img", 1 << 20)
    run("mkswap", swap)
    disk = folder / "vda.img"
    for number in range(2):
        with mounted(image) as root:
            if number == 0:
                _fill(root)
            else:
                (root / "text").write_text("changed\n")
                (root / "random-4096").unlink()
            subprocess.run(["cp", "-a", f"{root}/.", folder / f"then-{number}"], check=True)
        partitioned(disk, swap, image)
        program.backup("web1", f"vda={disk}")
    yield Guest(program, folder, disk)
    shutil.rmtree(folder)


def _fill(root: Path) -> None:
    (root / "lost+found").rmdir()
    fill(root)
    shutil.rmtree(root / "many")
    fill_unix(root)
    (root / "etc").mkdir()
    (root / "etc" / "fstab").write_text(f"UUID={ROOT} / ext4 defaults 0 1\n/dev/sdz1 /gone xfs defaults 0 2\n")
    (root / "etc" / "hosts").write_text("the guest's hosts")
    links = root / "a" / "links"
    links.mkdir()
    (root / "a" / "b" / "other").write_text("other")
    for name, (target, *_) in LINKS.items():
        (links / name).symlink_to(target)


@pytest.fixture(scope="module")
def mount(guest: Guest) -> Iterator[Mount]:
    folder = guest.folder / "all moments"
    folder.mkdir()
    made = Mount(guest.program, folder)
    yield made
    made.take_away()


def test_files_are_what_the_kernel_wrote(guest: Guest, mount: Mount) -> None:
    for number, moment in enumerate(mount.moments()):
        shown, real = below(moment / "files"), below(guest.then(number))
        assert shown.keys() == real.keys()
        for name, path in shown.items():
            if "links/" not in name and name != "to folder":
                assert status_of(path) == status_of(real[name]), name
        sparse = (moment / "files" / "sparse").stat()
        assert sparse.st_blocks * 512 < sparse.st_size // 10, "holes are told"
    zero = os.stat(moment / "files" / "zero")
    assert (os.major(zero.st_rdev), os.minor(zero.st_rdev)) == (1, 5)
    first, second = (moment / "files" / "text" for moment in mount.moments())
    assert first.read_text() != second.read_text() == "changed\n"
    assert os.listdir(mount.moments()[0]) == ["disk", "files", "volumes", "notes.txt"]


@in_soak
@pytest.mark.parametrize(("kind", "size"), [("xfs", 320 << 20), ("btrfs", 120 << 20), ("ext4", 64 << 20)])
def test_other_file_systems_are_what_the_kernel_wrote(program: Program, tmp_path: Path, kind: str, size: int) -> None:
    need(f"mkfs.{kind}")
    image, real = empty(tmp_path / "vda.img", size), tmp_path / "real"
    run(f"mkfs.{kind}", "-q", image)
    with mounted(image) as root:
        fill(root)
        fill_unix(root)
        subprocess.run(["cp", "-a", f"{root}/.", real], check=True)
    program.backup("web1", f"vda={image}")
    (tmp_path / "all").mkdir()
    mount = Mount(program, tmp_path / "all")
    try:
        shown = below(mount.moments()[0] / "volumes" / "vda" / "p0")
        assert shown.keys() == below(real).keys()
        for name, path in shown.items():
            if name != "to folder":
                assert status_of(path) == status_of(real / name), name
        assert mount.end(signal.SIGINT).err == ""
    finally:
        mount.take_away()


def test_holes_and_second_names(mount: Mount, tmp_path: Path) -> None:
    files = mount.moments()[0] / "files"
    assert holes_of(files / "sparse") == [(0, 3 << 20), ((3 << 20) + 5120, 9 << 20), ((9 << 20) + 5120, 20 << 20)]
    assert holes_of(files / "all hole") == [(0, 5 << 20)]
    assert holes_of(files / "random-70000") == []
    assert holes_of(files / "random-0") == []
    assert (files / "second name").samefile(files / "random-700")
    assert len({path.lstat().st_ino for path in below(files).values()}) == len(below(files)) - 1
    assert all(entry.inode() for entry in os.scandir(files)), "who sees 0 takes it for deleted"


def holes_of(path: Path) -> list[tuple[int, int]]:
    """From where to where, as lseek tells them."""
    found, at = [], 0
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while at < size:
            try:
                data = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                data = size
            if data > at:
                found.append((at, data))
            at = os.lseek(file.fileno(), data, os.SEEK_HOLE) if data < size else size
    return found


def test_links_lead_where_they_lead_in_the_guest(mount: Mount) -> None:
    links = mount.moments()[0] / "files" / "a" / "links"
    for name, (_, shown, read) in LINKS.items():
        assert os.readlink(links / name) == shown, name
        assert os.lstat(links / name).st_size == len(shown)
        if read is not None:
            assert (links / name).read_text() == read
    assert sorted(os.listdir(links / "to the root")) == sorted(os.listdir(mount.moments()[0] / "files"))
    assert not (links / "up behind nothing").exists(), "this machine's"
    assert all(str(mount.folder) in os.path.realpath(links / name) for name in LINKS)


def test_volumes_and_notes(guest: Guest, mount: Mount) -> None:
    moment = mount.moments()[1]
    disk = guest.disk.read_bytes()
    assert sorted(os.listdir(moment / "disk"))[:2] == ["vda.p1.raw", "vda.p2.raw"]
    for name, start, size in (("p1", 1 << 20, 1 << 20), ("p2", 2 << 20, 32 << 20)):
        assert (moment / "disk" / f"vda.{name}.raw").read_bytes() == disk[start : start + size], name
    assert os.listdir(moment / "volumes") == ["vda"]
    assert os.listdir(moment / "volumes" / "vda") == ["p2"], "swap has no files"
    assert (moment / "volumes" / "vda" / "p2" / "text").read_text() == "changed\n"
    notes = (moment / "notes.txt").read_text()
    assert notes.startswith("web1 at 20")
    for words in ("volumes/vda/p1: swap, 1.0 MB", "volumes/vda/p2: ext4, 33.6 MB", "files: /gone is not shown: /dev/sdz1"):
        assert words in notes
    for missing in ("disk/vda.p3.raw", "disk/vda.p1.qcow2", "volumes/vda/p1", "volumes/vdb", "files/none", "other"):
        assert not os.path.lexists(moment / missing)


def test_it_cannot_be_used_against_this_machine(mount: Mount) -> None:
    """What a guest made set-user-id, or a device, is neither here."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    options = next(
        line.split()[5] for line in lines if " fuse.everywhen " in line and line.split()[4] == _escaped(mount.folder)
    )
    assert {"ro", "nosuid", "nodev"} <= set(options.split(","))
    with pytest.raises(PermissionError):
        (mount.moments()[0] / "files" / "zero").read_bytes()


def _escaped(path: Path) -> str:
    return str(path).replace(" ", "\\040")


def test_several_read_and_a_kill_is_survived(guest: Guest, mount: Mount) -> None:
    """The last one: it ends what the others look into."""

    def read(number: int) -> None:
        for name, path in below(guest.then(number % 2)).items():
            if stat.S_ISREG(path.lstat().st_mode):
                assert (mount.moments()[number % 2] / "files" / name).read_bytes() == path.read_bytes(), name

    with ThreadPoolExecutor(2) as readers:
        list(readers.map(read, range(2)))
    assert "is not shown" in _killed(mount)
    again = Mount(guest.program, mount.folder)
    try:
        read(1)
        assert again.end(signal.SIGTERM).code == 0
        assert not os.path.ismount(mount.folder)
    finally:
        again.take_away()


def _killed(mount: Mount) -> str:
    """What it had said."""
    mount.process.kill()
    return mount.process.communicate()[1]


def test_a_hostile_file_system_is_an_error_for_each_path(program: Program, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "a" / "b").mkdir(parents=True)
    (source / "a" / "good").write_text("good")
    (source / "a" / "XXxXXxESCAPED").write_text("no")
    (source / "a" / "wild").write_bytes(content_of(1, 200_000))
    (source / "a" / "huge").write_text("small")
    image = empty(tmp_path / "vda.img", 8 << 20)
    run("mkfs.ext4", "-q", "-d", source, "-O", "^metadata_csum,^dir_index,^extents,^64bit", image)
    for order in (
        "link /a /a/b/loop",
        "set_inode_field /a/huge size 0x7ffffffffffffff",
        "set_inode_field /a/wild block[5] 0xfffffff0",
        "feature needs_recovery",
    ):
        run("debugfs", "-w", "-R", order, image)
    content = image.read_bytes().replace(b"XXxXXxESCAPED", b"../../ESCAPED")
    assert JOURNAL in content
    image.write_bytes(content.replace(JOURNAL, bytes(len(JOURNAL))))
    program.backup("web1", f"vda={image}")
    (tmp_path / "all").mkdir()
    mount = Mount(program, tmp_path / "all")
    try:
        folder = mount.moments()[0] / "volumes" / "vda" / "p0" / "a"
        assert sorted(os.listdir(folder)) == ["b", "good", "huge", "wild"]
        assert os.listdir(folder / "b") == ["loop"]
        for path in (folder / "b" / "loop", folder / "b" / "loop" / "b", mount.moments()[0] / "files" / "a"):
            with pytest.raises(OSError, match="Input/output error"):
                os.stat(path)
        for name in ("wild", "huge"):
            assert (folder / name).stat().st_size > 0
            with pytest.raises(OSError, match="Input/output error"):
                (folder / name).read_bytes()
        assert (folder / "good").read_text() == "good"
        assert "journal cannot be replayed" in (mount.moments()[0] / "notes.txt").read_text()
        told = mount.end(signal.SIGINT).err.splitlines()
    finally:
        mount.take_away()
    for words in ("ESCAPED", "contains itself", "wild", "looks like the root", "journal cannot be replayed"):
        assert len([line for line in told if words in line]) >= 1, (words, told)
