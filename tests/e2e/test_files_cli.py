# SPDX-License-Identifier: AGPL-3.0-or-later
"""`ls`, `cat`, `cp` and `find`: a guest's files at a moment are what they were, and none of them does harm."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import signal
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest_images import (
    below,
    content_of,
    empty,
    fill,
    fill_unix,
    mounted,
    need,
    partitioned,
    run,
    status_of,
    through_fuse,
)
from tests.hives import of_gpt, system_hive
from tests.mounts import Mount, can_mount
from tests.program import PROGRAM, Program

UUID_ROOT, UUID_DATA = "11111111-2222-3333-4444-555555555555", "66666666-7777-8888-9999-aaaaaaaaaaaa"
VOLUME = "Volume{01234567-89ab-cdef-0123-456789abcdef}"
MOTD = b"Gr\xc3\xbc\xc3\x9fe\tyou\x1b[2J\r\n\xff\xe2\x80\xaeend\r"
LEFT_OUT = {"pipe": "pipe", "zero": "character device", "large device": "block device", "socket": "socket"}


def make_ext4(image: Path, folder: Path, size: int, *options: str) -> Path:
    """With what is in a folder; without the kernel's help."""
    run("mkfs.ext4", "-q", "-d", folder, *options, empty(image, size))
    return image


@pytest.fixture(scope="module")
def linux(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Program, Path]]:
    """A repository with `web1`, and the folder that is in it: its root on `vda`, and a second disk for /srv."""
    folder = tmp_path_factory.mktemp("linux")
    root, data = folder / "root", folder / "data"
    (root / "etc").mkdir(parents=True)
    (root / "srv").mkdir()
    (root / "srv" / "covered").write_text("what is mounted on it hides it")
    fstab = (
        f"UUID={UUID_ROOT} / ext4 defaults 0 1\nLABEL=data\\040one /srv ext4 defaults 0 2\n/dev/sdz1 /gone xfs defaults 0 2\n"
    )
    (root / "etc" / "fstab").write_text(fstab)
    (root / "etc" / "hosts").write_text("127.0.0.1 localhost\n")
    (root / "motd").write_bytes(MOTD)
    (root / "etc" / "here").symlink_to("/srv/files/../files/plan.txt")
    (root / "etc" / "dangling").symlink_to("/srv/files/gone/x")
    (data / "files").mkdir(parents=True)
    (data / "files" / "plan.txt").write_text("the plan\n")
    (data / "files" / "evil\x1b[2Jname\u202e").write_text("x")
    with open(os.fsencode(data) + b"/files/no text \xff", "wb") as file:
        file.write(b"bytes")
    (data / "files" / "large").write_bytes(content_of(9, 200_000))
    (data / "back").symlink_to("../../etc/hosts")
    first = make_ext4(folder / "root.img", root, 16 << 20, "-U", UUID_ROOT)
    second = make_ext4(folder / "data.img", data, 16 << 20, "-U", UUID_DATA, "-L", "data one")
    swap = empty(folder / "swap.img", 1 << 20)
    run("mkswap", swap)
    program = Program(folder).init()
    program.backup("web1", f"vda={partitioned(folder / 'vda.img', swap, first)}", f"vdb={second}")
    yield program, folder
    shutil.rmtree(folder)


def test_volumes_are_listed(linux: tuple[Program, Path]) -> None:
    program, _ = linux
    found = program.ok("ls", "web1")["volumes"]
    assert [(one["disks"], one["name"], one["kind"], one["role"], one["label"]) for one in found] == [
        (["vda"], "p1", "swap", "swap", ""),
        (["vda"], "p2", "ext4", "files", ""),
        (["vdb"], "p0", "ext4", "files", "data one"),
    ]
    assert [one["name"] for one in program.ok("ls", "web1/vda@latest:/")["volumes"]] == ["p1", "p2"]
    shown = program.run("ls", "web1").out.splitlines()
    assert shown[0].startswith("web1 at 20")
    assert [line.split()[0] for line in shown[2:]] == ["web1/vda:/p1", "web1/vda:/p2", "web1/vdb:/p0"]


def test_a_guest_sees_its_disks_as_one(linux: tuple[Program, Path]) -> None:
    """Links and mounts lead where they lead in the guest, and never out of it."""
    program, folder = linux
    assert program.run("cat", "web1:/etc/here").out == "the plan\n"
    assert program.run("cat", "web1:/srv/back").out == "127.0.0.1 localhost\n"
    assert program.run("cat", "web1/vda:/p2/srv/covered").out == "what is mounted on it hides it"
    assert program.run("cat", "web1/vdb:/p0/back").code == 6  # alone, the volume has no such file
    found = program.ok("find", "web1:/", "*")
    paths = {one["path"] for one in found["found"]}
    assert {"/etc/fstab", "/srv/files/plan.txt", "/srv/files/no text \udcff"} < paths
    assert "/srv/covered" not in paths
    assert any("/gone is not shown" in note for note in found["notes"])
    listed = program.ok("ls", "web1:/etc")
    assert [one["name"] for one in listed["entries"]] == ["dangling", "fstab", "here", "hosts"]
    here = listed["entries"][2]
    assert (here["kind"], here["target"]) == ("link", "/srv/files/../files/plan.txt")
    status = (folder / "root" / "etc" / "hosts").stat()
    hosts = listed["entries"][3]
    assert (hosts["size"], hosts["uid"], int(hosts["mode"], 8)) == (20, status.st_uid, stat.S_IMODE(status.st_mode))


def test_names_are_harmless_unless_they_are_asked_for(linux: tuple[Program, Path]) -> None:
    program, _ = linux
    shown = program.run("ls", "web1:/srv/files")
    assert shown.out.splitlines()[1:] == ["evil\\x1b[2Jname\\u202e", "large", "no text \\xff", "plan.txt"]
    assert "evil\\x1b[2Jname" in program.run("ls", "-l", "web1:/srv/files").out
    names = subprocess.run([PROGRAM, "ls", "-0", "web1:/srv/files"], env=program.environment, capture_output=True, check=True)
    assert names.stdout.split(b"\0") == ["evil\x1b[2Jname\u202e".encode(), b"large", b"no text \xff", b"plan.txt", b""]
    paths = subprocess.run([PROGRAM, "find", "-0", "web1:/", "no*"], env=program.environment, capture_output=True, check=True)
    assert paths.stdout == b"/srv/files/no text \xff\0"
    assert b"web1 at " in paths.stderr


def test_contents_are_harmless_on_a_terminal_alone(linux: tuple[Program, Path]) -> None:
    program, _ = linux
    ours, theirs = pty.openpty()
    environment = {**program.environment, "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
    subprocess.run([PROGRAM, "cat", "-q", "web1:/motd"], env=environment, stdout=theirs, check=True)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # all of it was read
        while part := os.read(ours, 1 << 16):
            shown += part
    os.close(ours)
    assert shown.decode() == "Grüße\tyou\\x1b[2J\r\n\\xff\\u202eend\\x0d"
    piped = subprocess.run([PROGRAM, "cat", "web1:/motd"], env=program.environment, capture_output=True, check=True)
    assert piped.stdout == MOTD


def test_where_to_find_need_not_be_said(linux: tuple[Program, Path]) -> None:
    program, _ = linux
    assert [one["path"] for one in program.ok("find", "web1", "fst*")["found"]] == ["/etc/fstab"]
    deleted = program.ok("find", "web1", "fst*", "--deleted")
    assert not deleted["found"]
    assert any("/gone is not shown" in note for note in deleted["notes"])
    for more in ((), ("--deleted",)):
        done = program.run("find", "web1/vda", "fst*", *more)
        assert done.code == 2
        assert "which volume?" in done.err


def test_which_moment_and_the_content_do_not_mix(linux: tuple[Program, Path]) -> None:
    program, _ = linux
    done = program.run("cat", "web1:/etc/hosts")
    assert (done.code, done.out) == (0, "127.0.0.1 localhost\n")
    assert done.err.startswith("web1 at 20")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("ls", "web1:/srv/file"), 6, ["No /srv/file in web1 at", "Did you mean /srv/files?", "everywhen ls web1:/srv"]),
        (
            ("cat", "web1:/etc/dangling"),
            6,
            ["No /etc/dangling in web1 at", "leads to /srv/files, and there", "ls web1:/srv/files"],
        ),
        (
            ("ls", "web1/vda:/p3/etc"),
            6,
            [
                "No volume p3 on web1/vda at",
                "p1 (swap, 1.0 MB), p2 (ext, 16.8 MB)",
                "everywhen ls web1/vda:/",
            ],
        ),
        (("ls", "web1/vda:/etc/hosts"), 6, ["No volume etc on web1/vda at", "Did you mean /p2/etc/hosts?"]),
        (("find", "web1/vda:/", "x"), 2, ["in which volume? web1/vda has p1 (swap", "everywhen ls web1/vda:/p2"]),
        (("cat", "web1:/gone/x"), 6, ["No /gone/x in web1 at", "/gone is not shown: /dev/sdz1 is none of the volumes"]),
        (("cat", "web1:/etc"), 2, ["web1:/etc is a folder.", "everywhen ls web1:/etc"]),
        (("ls", "web1:/etc/hosts/x"), 2, ["web1:/etc/hosts/x: /etc/hosts: a file, not a folder."]),
        (("cat", "web1"), 2, ["which file?"]),
        (("cp", "web1:/etc", "."), 2, ["web1:/etc is a folder.", "cp -r"]),
        (("cp", "web1:/etc/hosts", "missing/x"), 6, ["missing is not a folder here"]),
        (("cp", "web1:/etc/hosts", "missing/"), 6, ["missing/ is not a folder here"]),
        (("ls", "web1/vda:/p1/x"), 1, ["web1/vda:/p1 is the guest's swap space: it has no files."]),
        (("ls", "web1/vdz:/p1"), 6, ["vdz"]),
        (("find", "web1:/etc/hosts", "*"), 2, ["no folder"]),
        (("ls", "-0", "--json", "web1:/"), 2, ["exclude one another"]),
    ],
)
def test_what_is_not_there_is_said(
    linux: tuple[Program, Path], arguments: tuple[str, ...], code: int, words: list[str]
) -> None:
    program, _ = linux
    done = program.run(*arguments)
    assert done.code == code, done
    for word in words:
        assert word in done.out + done.err


def test_nothing_is_overwritten_untold(linux: tuple[Program, Path], tmp_path: Path) -> None:
    program, _ = linux
    target = tmp_path / "hosts"
    target.write_text("mine")
    done = program.run("cp", "web1:/etc/hosts", target)
    assert (done.code, target.read_text()) == (1, "mine")
    assert "--overwrite" in done.err
    program.ok("cp", "web1:/etc/hosts", target, "--overwrite")
    assert target.read_text() == "127.0.0.1 localhost\n"
    assert os.listdir(tmp_path) == ["hosts"]
    # In a folder, what is there stays, and the rest is copied.
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "hosts").write_text("mine")
    done = program.run("cp", "-r", "web1:/etc", tmp_path)
    assert (done.code, (tmp_path / "etc" / "hosts").read_text()) == (5, "mine")
    assert (tmp_path / "etc" / "fstab").exists()
    assert "etc/hosts: it is here already" in done.err


def test_what_lies_in_the_target_leads_nowhere(linux: tuple[Program, Path], tmp_path: Path) -> None:
    """Somebody has put links into the folder that is copied to: nothing is written where they lead."""
    program, _ = linux
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    (outside / "hosts").write_text("mine")
    (target / "etc").mkdir(parents=True)
    (target / "srv").symlink_to(outside)
    (target / "etc" / "hosts").symlink_to(outside / "hosts")
    (target / "etc" / "fstab").symlink_to(outside / "new")
    for more in ((), ("--overwrite",)):
        done = program.run("cp", "-r", *more, "web1:/", target)
        assert done.code == 5, done
        assert sorted(os.listdir(outside)) == ["hosts"]
        assert (outside / "hosts").read_text() == "mine"
        assert (target / "srv").is_symlink()
    assert (target / "etc" / "hosts").read_text() == "127.0.0.1 localhost\n"  # the link was replaced, not what it leads to
    assert not (target / "etc" / "hosts").is_symlink()


def test_a_full_disk_ends_it_and_leaves_no_half_file(linux: tuple[Program, Path], tmp_path: Path) -> None:
    program, _ = linux
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("only root may mount")
    try:
        copied = program.run("cp", "-r", "web1:/srv", tmp_path / "srv")
    finally:
        left = below(tmp_path)
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert (copied.code, "srv/files/large: No space left" in copied.err, "is removed" in copied.err) == (8, True, True), copied
    assert "srv/files/large" not in left


def test_a_copy_is_like_its_original(program: Program, tmp_path: Path) -> None:
    """All that the kernel can put into an ext4: modes, owners, times in ns, attributes, holes, second names, links."""
    image = empty(tmp_path / "vda.img", 64 << 20)
    run("mkfs.ext4", "-q", image)
    with mounted(image) as folder:
        fill(folder)
        fill_unix(folder)
        (folder / "lost+found").rmdir()
        program_image = tmp_path / "copy.img"
        os.sync()
        subprocess.run(["fsfreeze", "-f", str(folder)], check=True)
        try:
            subprocess.run(["cp", "--sparse=always", str(image), str(program_image)], check=True)
        finally:
            subprocess.run(["fsfreeze", "-u", str(folder)], check=True)
        program.backup("web1", f"vda={program_image}")
        done = program.run("cp", "-r", "web1/vda:/p0/", tmp_path / "out", "--json")
        assert done.code == 5, done
        assert {one["path"]: one["why"] for one in done.document["problems"]} == {
            name: f"a {kind}, which has no content; left out" for name, kind in LEFT_OUT.items()
        }
        original, copy = below(folder), below(tmp_path / "out")
        assert original.keys() - LEFT_OUT.keys() == copy.keys()
        for name, path in copy.items():
            assert status_of(path) == status_of(original[name]), name
            if path.stat(follow_symlinks=False).st_nlink == 1:
                assert path.lstat().st_blocks <= original[name].lstat().st_blocks + 16, name  # holes stay holes
        assert (tmp_path / "out" / "second name").samefile(tmp_path / "out" / "random-700")
        assert done.document["not_restored"] == {}
        assert done.document["files"] == sum(not path.is_symlink() and path.is_file() for path in copy.values())


def test_a_hostile_file_system_does_no_harm(program: Program, tmp_path: Path) -> None:
    """Folders that contain themselves, names that are paths, absurd sizes: an error for each, and the rest is shown."""
    need("debugfs")
    source = tmp_path / "source"
    (source / "a" / "b").mkdir(parents=True)
    (source / "a" / "good").write_text("good")
    (source / "a" / "huge").write_text("small")
    (source / "a" / "XXxXXxESCAPED").write_text("no")
    (source / "a" / "QQ").write_text("no")
    (source / "a" / "wild").write_bytes(content_of(1, 9000))
    image = make_ext4(tmp_path / "vda.img", source, 8 << 20, "-O", "^metadata_csum,^dir_index")
    for order in (
        "link /a /a/b/loop",
        "set_inode_field /a/huge size 0x7ffffffffffffff",
        "set_inode_field /a/wild block[5] 0xfffffff0",
    ):
        run("debugfs", "-w", "-R", order, image)
    content = image.read_bytes()
    content = content.replace(b"XXxXXxESCAPED", b"../../ESCAPED").replace(b"\x02\x01QQ", b"\x02\x01..")
    image.write_bytes(content)
    program.backup("web1", f"vda={image}")
    listed = program.run("ls", "web1/vda:/p0/a", "--json")
    assert listed.code == 5
    assert [one["name"] for one in listed.document["entries"]] == ["b", "good", "huge", "wild"]
    assert "../../ESCAPED" in {one["name"] for one in listed.document["unreadable"]}
    found = program.run("find", "web1/vda:/p0", "*", "--json")
    assert found.code == 5
    assert any(one["path"] == "/p0/a/b/loop" and "under another name" in one["why"] for one in found.document["unreadable"])
    target = tmp_path / "deep" / "target"
    target.mkdir(parents=True)
    before = set(below(tmp_path))
    done = program.run("cp", "-r", "web1/vda:/p0", target, "--json")
    assert done.code == 5
    assert (target / "a" / "good").read_text() == "good"
    problems = {one["path"] for one in done.document["problems"]}
    assert {"a/b/loop", "a/huge", "a/wild", "a/../../ESCAPED"} <= problems
    new = {
        name for name in set(below(tmp_path)) - before if not name.startswith(("deep/target/", ".", "cache", "repo", "host"))
    }
    assert new == set()
    assert sorted(below(target)) == ["a", "a/b", "a/good", "lost+found"]


def test_what_only_the_journal_has_is_there(program: Program, tmp_path: Path) -> None:
    """A disk as it was while the guest ran: what it synced is in its journal, and not yet where it belongs."""
    image, taken = empty(tmp_path / "vda.img", 32 << 20), tmp_path / "taken.img"
    run("mkfs.ext4", "-q", image)
    with mounted(image) as folder:
        (folder / "new").write_text("synced")
        with (folder / "new").open("rb") as file:
            os.fsync(file.fileno())
        subprocess.run(["cp", "--sparse=always", str(image), str(taken)], check=True)
    program.backup("web1", f"vda={taken}")
    assert program.run("cat", "web1/vda:/p0/new").out == "synced"
    assert program.ok("ls", "web1/vda:/p0")["notes"] == []
    need("debugfs")
    assert "new" not in run("debugfs", "-R", "ls /", taken)  # which does not replay


def test_encrypted_and_unknown_volumes_are_named(program: Program, tmp_path: Path) -> None:
    luks, unknown, data = empty(tmp_path / "luks", 2 << 20), empty(tmp_path / "unknown", 2 << 20), tmp_path / "data"
    luks.write_bytes(b"LUKS\xba\xbe\0\2" + bytes((2 << 20) - 8))
    (data / "files").mkdir(parents=True)
    (data / "files" / "plan").write_text("the plan\n")
    third = make_ext4(tmp_path / "data.img", data, 8 << 20, "-L", "data")
    fourth = empty(tmp_path / "bitlocker", 2 << 20)
    fourth.write_bytes(b"\xeb\x58\x90-FVE-FS-" + bytes((2 << 20) - 11))
    program.backup("web1", f"vda={luks}", f"vdb={unknown}", f"vdc={third}", f"vdd={fourth}")
    found = {one["disks"][0]: (one["kind"], one["role"]) for one in program.ok("ls", "web1")["volumes"]}
    assert found == {
        "vda": ("LUKS", "encrypted"),
        "vdb": ("unknown", "unknown"),
        "vdc": ("ext4", "files"),
        "vdd": ("BitLocker", "encrypted"),
    }
    for disk, what in (
        ("vda", "is encrypted (LUKS): without its key its files cannot be listed; its device can be used."),
        ("vdd", "is encrypted (BitLocker): without its key its files cannot be listed; its device can be used."),
        ("vdb", "has no file system that is known here; its device can be used."),
    ):
        done = program.run("ls", f"web1/{disk}:/p0/x")
        assert (done.code, done.err.splitlines()[0]) == (1, f"web1/{disk}:/p0 {what}")
        assert f"everywhen serve nbd web1/{disk} --socket PATH" in done.err
    error = program.run("ls", "web1:/files/plan", "--json").error
    assert error["exit"] == 1
    assert error["what"].startswith("web1:/files/plan: no volume of web1 looks like the root of a guest's system.")
    assert error["do"] == [
        "Did you mean web1/vdc:/p0/files/plan?",
        "web1/vda:/p0 is encrypted (LUKS): without its key its files cannot be listed; its device can be used.",
        "web1/vdb:/p0 has no file system that is known here; its device can be used.",
        'everywhen ls web1/vdc:/p0 (ext4, "data", 8.4 MB)',
        "web1/vdd:/p0 is encrypted (BitLocker): without its key its files cannot be listed; its device can be used.",
        "everywhen serve nbd web1/vda --socket PATH (the disk as a device)",
    ]


LVM = 'devices {use_devicesfile=0 filter=["a|loop|","r|.*|"]} activation {udev_sync=0 udev_rules=0} backup {backup=0 archive=0}'


def lvm(command: str, *words: str) -> str:
    """LVM without the kernel's device mapper: only the metadata are made."""
    return run("lvm", command, "--driverloaded", "n", "--config", LVM, *words)


def test_logical_volumes_over_two_disks(program: Program, tmp_path: Path) -> None:
    """The root begins on one disk and ends on the other; a mount table names the second volume."""
    need("lvm", "losetup")
    if os.geteuid():
        pytest.skip("only root may make loop devices")
    root, home = tmp_path / "root", tmp_path / "home"
    (root / "etc").mkdir(parents=True)
    (root / "home").mkdir()
    (root / "large").write_bytes(content_of(7, 22 << 20))
    home.mkdir()
    (home / "ann").write_text("hers")
    disks = [empty(tmp_path / f"vd{letter}", 24 << 20) for letter in "ab"]
    devices = [run("losetup", "-f", "--show", disk).strip() for disk in disks]
    try:
        lvm("pvcreate", *devices)
        lvm("vgcreate", "-s", "1M", "vg-x", *devices)
        lvm("lvcreate", "-an", "-Zn", "-Wn", "-n", "root", "-L", "32M", "vg-x")
        lvm("lvcreate", "-an", "-Zn", "-Wn", "-n", "home", "-L", "8M", "vg-x")
        begin = int(lvm("pvs", "--noheadings", "-o", "pe_start", "--units", "b", "--nosuffix", devices[0]))
        group, home_id = lvm("lvs", "--noheadings", "-o", "vg_uuid,lv_uuid", "vg-x/home").replace("-", "").split()
        segments = lvm("lvs", "--noheadings", "--segments", "-o", "lv_name,seg_pe_ranges", "vg-x").split()
    finally:
        for device in devices:
            run("losetup", "-d", device)
    # As the installer of Ubuntu's server writes it.
    (root / "etc" / "fstab").write_text(
        f"/dev/mapper/vg--x-root / ext4\n/dev/disk/by-id/dm-uuid-LVM-{group}{home_id} /home ext4\n"
    )
    contents = {
        "root": make_ext4(tmp_path / "root.img", root, 32 << 20).read_bytes(),
        "home": make_ext4(tmp_path / "home.img", home, 8 << 20, "-O", "^has_journal").read_bytes(),
    }
    for name, place in zip(segments[::2], segments[1::2], strict=True):
        device, _, extents = place.partition(":")
        first, last = map(int, extents.split("-"))
        size = (last + 1 - first) << 20
        with disks[devices.index(device)].open("r+b") as file:
            file.seek(begin + (first << 20))
            file.write(contents[name][:size])
        contents[name] = contents[name][size:]
    assert len(segments) > 4
    program.backup("web1", *(f"{disk.name}={disk}" for disk in disks))
    found = {one["name"]: one["disks"] for one in program.ok("ls", "web1")["volumes"] if one["role"] == "files"}
    assert found == {"vg--x-root": ["vda", "vdb"], "vg--x-home": ["vdb"]}
    assert program.run("cat", "web1:/home/ann").out == "hers"
    program.ok("cp", "web1:/large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content_of(7, 22 << 20)
    assert program.run("cat", "web1/vdb:/vg--x-home/ann").out == "hers"


def test_a_guest_with_a_default_subvolume(program: Program, tmp_path: Path) -> None:
    """As openSUSE has it: the root is a snapshot, the rest subvolumes beside it; a second disk, and what is bound elsewhere."""
    need("mkfs.btrfs", "btrfs")
    system, data = empty(tmp_path / "system.img", 128 << 20), tmp_path / "data"
    run("mkfs.btrfs", "-q", "-L", "system", system)
    table = (
        "LABEL=system / btrfs defaults 0 0\nLABEL=system /home btrfs subvol=/@/home 0 0\n"
        "LABEL=system /.snapshots btrfs subvol=/@/.snapshots 0 0\n/srv/data/www /var/www none bind,x-systemd.requires=x\n"
        "/dev/disk/by-label/data\\x20one /srv/data ext4 noauto,x-systemd.automount\nLABEL=data\\040one /mnt ext4 noauto 0 0\n"
    )
    with mounted(system) as top:
        for name in ("@", "@/home", "@/.snapshots"):
            run("btrfs", "subvolume", "create", top / name)
        (top / "@" / ".snapshots" / "1").mkdir()
        root = top / "@" / ".snapshots" / "1" / "snapshot"
        run("btrfs", "subvolume", "create", root)
        for name in ("etc", "home", ".snapshots", "srv/data", "var/www", "mnt"):
            (root / name).mkdir(parents=True)
        (root / "etc" / "fstab").write_text(table)
        (top / "@" / "home" / "ann").write_text("hers")
        run("btrfs", "subvolume", "set-default", root)
    (data / "www").mkdir(parents=True)
    (data / "www" / "index").write_text("the page")
    second = make_ext4(tmp_path / "data.img", data, 8 << 20, "-L", "data one")
    program.backup("web1", f"vda={system}", f"vdb={second}")
    found = program.ok("find", "web1:/", "*")
    paths = {one["path"] for one in found["found"]}
    assert {"/home/ann", "/srv/data/www/index", "/var/www/index", "/.snapshots/1/snapshot/etc/fstab"} < paths
    assert "/mnt/www" not in paths
    assert found["notes"] == ["/mnt is not shown: the guest mounts it when somebody says so; it is vdb:/p0"]
    assert program.run("cat", "web1:/etc/fstab").out == table


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Program, Path]]:
    """`win1`: C: with a Windows folder, a boot volume, and a data volume."""
    need("mkntfs", "mkfs.fat", "mcopy")
    folder = tmp_path_factory.mktemp("windows")
    system, data, boot = (folder / name for name in ("system.img", "data.img", "boot.img"))
    for image, label in ((system, "Windows"), (data, "Data")):
        run("mkntfs", "-q", "-F", "-L", label, empty(image, 16 << 20))
    with through_fuse(system, "ntfs-3g", "-o", "streams_interface=windows") as there:
        (there / "Windows" / "System32" / "config").mkdir(parents=True)
        (there / "Users" / "Ann").mkdir(parents=True)
        (there / "mnt").mkdir()
        target = f"\\??\\{VOLUME}\\".encode("utf-16-le")
        lengths = struct.pack("<IHHHHHH", 0xA0000003, 12 + len(target), 0, 0, len(target), len(target) + 2, 0)
        os.setxattr(there / "mnt", "system.ntfs_reparse_data", lengths + target + bytes(4))  # as mountvol makes it
        (there / "Users" / "Ann" / "Letter.txt").write_text("Dear Bob\n")
        (there / "Users" / "Ann" / "Letter.txt:Zone.Identifier").write_text("[ZoneTransfer]\nZoneId=3\n")
    (folder / "note").write_text("of the data volume\n")
    run("ntfscp", data, folder / "note", "note.txt")
    run("mkfs.fat", empty(boot, 4 << 20))
    (folder / "EFI" / "Microsoft").mkdir(parents=True)
    (folder / "EFI" / "Microsoft" / "x").write_text("x")
    run("mcopy", "-s", "-i", boot, folder / "EFI", "::/")
    program = Program(folder).init()
    program.backup("win1", f"vda={partitioned(folder / 'vda.img', boot, system, data)}")
    yield program, folder
    shutil.rmtree(folder)


def test_drives_of_windows(windows: tuple[Program, Path], tmp_path: Path) -> None:
    program, _ = windows
    listed = program.ok("ls", "win1:/")
    assert [one["name"] for one in listed["entries"]] == ["C:", "D:"]
    assert any("given by order" in note for note in listed["notes"])
    assert program.run("cat", "win1:/C:/users/ANN/letter.TXT").out == "Dear Bob\n"
    assert program.run("cat", "win1:/d:/note.txt").out == "of the data volume\n"
    assert program.run("cat", "--stream", "Zone.Identifier", "win1:/C:/Users/Ann/Letter.txt").out.startswith("[ZoneTransfer]")
    assert [one["path"] for one in program.ok("find", "win1:/", "LETTER*")["found"]] == ["/C:/Users/Ann/Letter.txt"]
    program.ok("cp", "-r", "win1:/C:/Users", tmp_path)
    assert sorted(os.listdir(tmp_path / "Users" / "Ann")) == ["Letter.txt", "Letter.txt:Zone.Identifier"]
    assert (tmp_path / "Users" / "Ann" / "Letter.txt:Zone.Identifier").read_text() == "[ZoneTransfer]\nZoneId=3\n"


def test_drives_have_the_letters_that_windows_gave(windows: tuple[Program, Path], tmp_path: Path) -> None:
    need("hivexregedit")
    program, folder = windows
    uuids = (UUID_ROOT, UUID_DATA, "bbbbbbbb-cccc-dddd-eeee-ffffffffffff")
    names = {"\\DosDevices\\C:": of_gpt(UUID_DATA), "\\DosDevices\\S:": of_gpt(uuids[2]), f"\\??\\{VOLUME}": of_gpt(uuids[2])}
    hive = system_hive(tmp_path / "hive", names)
    system = Path(shutil.copy(folder / "system.img", tmp_path / "system.img"))
    run("ntfscp", system, hive, "Windows/System32/config/SYSTEM")
    disk = partitioned(tmp_path / "vda.img", folder / "boot.img", system, folder / "data.img", uuids=uuids)
    program.backup("win2", f"vda={disk}")
    listed = program.ok("ls", "win2:/")
    assert ([one["name"] for one in listed["entries"]], listed["notes"]) == (["C:", "S:"], [])
    assert program.run("cat", "win2:/s:/note.txt").out == "of the data volume\n"
    assert program.run("cat", "win2:/C:/Users/Ann/Letter.txt").out == "Dear Bob\n"
    assert program.run("cat", "win2:/C:/mnt/note.txt").out == "of the data volume\n"


@can_mount
def test_drives_of_windows_in_a_mounted_folder(windows: tuple[Program, Path], tmp_path: Path) -> None:
    program, _ = windows
    (tmp_path / "all").mkdir()
    mount = Mount(program, tmp_path / "all")
    try:
        files = mount.moments("win1")[0] / "files"
        assert os.listdir(files) == ["C:", "D:"]
        assert (files / "c:" / "users" / "Ann" / "LETTER.txt").read_text() == "Dear Bob\n"
        assert (files / "D:" / "note.txt").read_text() == "of the data volume\n"
        assert os.listdir(files / "C:" / "Users" / "Ann") == ["Letter.txt"]
        assert (files / "C:" / "Users" / "Ann" / "Letter.txt:zone.identifier").read_text() == "[ZoneTransfer]\nZoneId=3\n"
        for missing in ("Letter.txt:other", ":Zone.Identifier", "no.txt:Zone.Identifier"):
            assert not (files / "C:" / "Users" / "Ann" / missing).exists()
        assert "given by order" in (files.parent / "notes.txt").read_text()
        told = mount.end(signal.SIGINT).err
    finally:
        mount.take_away()
    assert "given by order" in told


def test_progress_counts_files(linux: tuple[Program, Path], tmp_path: Path) -> None:
    program, _ = linux
    done = program.run("cp", "-r", "web1:/etc", tmp_path, "--progress", "json")
    last = json.loads(done.err.splitlines()[-1])
    assert (last["title"], last["files"]) == ("cp web1", 2)
    assert last["bytes_done"] == last["bytes_total"] > 0


def test_what_is_mounted_on_the_way_is_told_too(program: Program, tmp_path: Path) -> None:
    need("mkfs.fat", "mcopy")
    (tmp_path / "root" / "etc").mkdir(parents=True)
    (tmp_path / "root" / "boot").mkdir()
    (tmp_path / "root" / "etc" / "fstab").write_text("LABEL=EFI /boot vfat defaults 0 0\n")
    root = make_ext4(tmp_path / "root.img", tmp_path / "root", 8 << 20)
    boot = empty(tmp_path / "boot.img", 4 << 20)
    run("mkfs.fat", "-n", "EFI", boot)
    run("mcopy", "-i", boot, tmp_path / "root" / "etc" / "fstab", "::loader")
    program.backup("web1", f"vda={partitioned(tmp_path / 'vda.img', root, boot)}")
    for command in (("cp", "-r", "web1:/", tmp_path / "copy"), ("find", "web1:/", "l*"), ("diff", "web1", "web1")):
        done = program.run(*command)
        assert done.code == 0
        assert done.err.count("of the guest's own zone") == (2 if command[0] == "diff" else 1), command
    assert (tmp_path / "copy" / "boot" / "loader").exists()
