# SPDX-License-Identifier: AGPL-3.0-or-later
"""Volumes of disks: partition tables made by sfdisk, volume groups made by LVM's own tools; damaged ones."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from everywhen.formats.filesystems.lvm import decode_text
from everywhen.guest.errors import GuestError, GuestUnsupported, NoSuchPath
from everywhen.guest.footprint import Footprint, taking_down
from everywhen.guest.lvm import _Group
from everywhen.guest.recognition import Role
from everywhen.guest.volumes import Volumes, find_volumes, open_file_system
from everywhen.guest.walking import find
from tests.guest_images import Bytes, Image, empty, need, run

SECTOR = 512


def found(volumes: Volumes) -> dict[str, tuple[str, int]]:
    """Kind and size by name."""
    return {volume.name: (volume.kind, volume.size) for volume in volumes.found}


def small_ext(folder: Path, label: str, size: int = 1 << 20) -> bytes:
    """A file system with one file, whose content is the label."""
    need("mkfs.ext2")
    source = folder / f"source-{label}"
    source.mkdir()
    (source / "file").write_text(label)
    image = empty(folder / f"{label}.img", size)
    run("mkfs.ext2", "-q", "-L", label, "-d", source, image)
    return image.read_bytes()


def put(image: Path, place: int, content: bytes) -> None:
    with image.open("r+b") as file:
        file.seek(place)
        file.write(content)


def labels(volumes: Volumes) -> dict[str, str]:
    """What the file of each file system says."""
    said = {}
    for volume in volumes.found:
        if volume.role is Role.FILES:
            system = open_file_system(volume)
            said[volume.name] = system.open(find(system, "/file").entry).read(0, 100).decode()
            assert said[volume.name] == system.label
    return said


def test_few_bytes_say_that_a_disk_has_no_table(tmp_path: Path) -> None:
    """Beside them are the counters of a superblock and of groups: if these counted, a history would open every moment."""
    footprint = Footprint()
    with taking_down(footprint):
        volumes = find_volumes({"vda": Bytes(small_ext(tmp_path, "whole"))})
    assert found(volumes) == {"p0": ("ext", 1 << 20)}
    beyond_the_boot_sector = [(at, length) for at, length in footprint.ranges().get("vda", []) if at + length > SECTOR]
    assert {at for at, _ in beyond_the_boot_sector} <= {0, 1080, 4096, (1 << 20) - 4096, (1 << 20) - SECTOR}
    assert sum(length for _, length in beyond_the_boot_sector) < SECTOR + 64


MBR = "label: dos\nlabel-id: 0x1a2b3c4d\nstart=2048, size=4096, type=83\nstart=8192, size=16384, type=5\n"
MBR += "start=10240, size=4096, type=83\nstart=16384, size=4096, type=82\n"


def test_mbr_with_logical_partitions(tmp_path: Path) -> None:
    need("sfdisk", "mkswap")
    image = empty(tmp_path / "disk", 16 << 20)
    run("sfdisk", "-q", image, input=MBR.encode())
    put(image, 2048 * SECTOR, small_ext(tmp_path, "first"))
    put(image, 10240 * SECTOR, small_ext(tmp_path, "second"))
    swap = empty(tmp_path / "swap", 2 << 20)
    run("mkswap", "-q", swap)
    put(image, 16384 * SECTOR, swap.read_bytes())
    volumes = find_volumes({"vda": Image(image)})
    assert found(volumes) == {"p1": ("ext", 2 << 20), "p5": ("ext", 2 << 20), "p6": ("swap", 2 << 20)}
    assert volumes.problems == []
    assert labels(volumes) == {"p1": "first", "p5": "second"}
    assert [one.part_uuid for one in volumes.found] == ["1a2b3c4d-01", "1a2b3c4d-05", "1a2b3c4d-06"]
    with pytest.raises(GuestUnsupported, match="p6 of vda is the guest's swap space"):
        open_file_system(volumes.found[2])


def test_a_chain_that_breaks_or_goes_round_is_said(tmp_path: Path) -> None:
    need("sfdisk")
    image = empty(tmp_path / "disk", 16 << 20)
    run("sfdisk", "-q", image, input=MBR.encode())
    whole = image.read_bytes()
    chain = next(at for at in range(8192 * SECTOR, len(whole), SECTOR) if whole[at + 510 : at + 512] == b"\x55\xaa")
    round_ = bytearray(whole)
    struct.pack_into("<II", round_, chain + 446 + 16 + 8, 0, 100)
    volumes = find_volumes({"vda": Bytes(bytes(round_))})
    assert set(found(volumes)) == {"p1", "p5"}
    assert "goes round" in str(volumes.problems[0][1])
    broken = bytearray(whole)
    broken[chain + 510] = 0
    volumes = find_volumes({"vda": Bytes(bytes(broken))})
    assert set(found(volumes)) == {"p1"}
    assert "breaks at sector 8192" in str(volumes.problems[0][1])


UUID = "6a1f0c2e-1111-2222-3333-444455556666"


@pytest.mark.parametrize("sector", [512, 4096])
def test_gpt(sector: int, tmp_path: Path) -> None:
    need("sfdisk", "losetup")
    image = empty(tmp_path / "disk", 16 << 20)
    first, last = (1 << 20) // sector, (8 << 20) // sector
    table = f"label: gpt\nfirst-lba: 40\n1: start={first}, size={first * 2}\n"
    table += f"4: start={last}, size={first * 2}, name=Grüße, uuid={UUID}\n"
    if sector == 512:
        run("sfdisk", "-q", image, input=table.encode())
    else:
        if os.geteuid():
            pytest.skip("only root may make loop devices")
        device = run("losetup", "-f", "--show", "--sector-size", str(sector), image).strip()
        try:
            run("sfdisk", "-q", "--no-tell-kernel", "--no-reread", device, input=table.encode())
        finally:
            run("losetup", "-d", device)
    put(image, 1 << 20, small_ext(tmp_path, "first"))
    put(image, 8 << 20, small_ext(tmp_path, "fourth"))
    whole = image.read_bytes()
    volumes = find_volumes({"vda": Bytes(whole)})
    assert (set(found(volumes)), volumes.problems) == ({"p1", "p4"}, [])
    assert labels(volumes) == {"p1": "first", "p4": "fourth"}
    assert (volumes.found[1].part_uuid, volumes.found[1].part_label) == (UUID, "Grüße")
    for place, said in ((sector, "copy is used"), (sector + 16, "checksum"), (2 * sector + 40, "checksum")):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        volumes = find_volumes({"vda": Bytes(bytes(damaged))})
        assert labels(volumes) == {"p1": "first", "p4": "fourth"}
        assert said in str(volumes.problems[0][1])
    damaged = bytearray(whole)
    damaged[sector] = damaged[len(whole) - sector] = 0
    volumes = find_volumes({"vda": Bytes(bytes(damaged))})
    assert not volumes.found
    assert "neither its header nor the copy" in str(volumes.problems[0][1])


def test_sectors_of_4096_bytes_in_an_mbr_are_told_by_what_fits(tmp_path: Path) -> None:
    disk = Bytes(bytes(8 << 20))
    disk.content[446:462] = struct.pack("<B3xB3xII", 0, 0x83, 256, 256)
    disk.content[510:512] = b"\x55\xaa"
    disk.content[1 << 20 : 2 << 20] = small_ext(tmp_path, "label")
    volumes = find_volumes({"vda": disk})
    assert labels(volumes) == {"p1": "label"}


def test_partitions_beyond_the_end_are_cut_off_and_said(tmp_path: Path) -> None:
    disk = Bytes(bytes(3 << 20))
    disk.content[446:478] = struct.pack("<B3xB3xII", 0, 0x83, 2048, 8192) + struct.pack("<B3xB3xII", 0, 0x83, 1 << 20, 1 << 31)
    disk.content[510:512] = b"\x55\xaa"
    disk.content[1 << 20 : 2 << 20] = small_ext(tmp_path, "cut")
    volumes = find_volumes({"vda": disk})
    assert labels(volumes) == {"p1": "cut"}
    assert found(volumes)["p2"] == ("unknown", 0)
    assert "the disk at 3145728" in str(volumes.found[0].problem)
    with pytest.raises(GuestError, match="partition 2 ends"):
        open_file_system(volumes.found[1])


def test_a_file_system_without_a_table_is_p0(tmp_path: Path) -> None:
    volumes = find_volumes({"vda": Bytes(small_ext(tmp_path, "all")), "vdb": Bytes(bytes(1 << 20)), "vdc": Bytes(b"")})
    assert [(volume.disks, volume.name, volume.kind) for volume in volumes.found] == [
        (("vda",), "p0", "ext"),
        (("vdb",), "p0", "unknown"),
        (("vdc",), "p0", "unknown"),
    ]
    with pytest.raises(GuestUnsupported, match="p0 of vdb has no file system that is known here; its device can be used"):
        open_file_system(volumes.found[1])
    with pytest.raises(NoSuchPath, match="/nothing: no such file or folder; what exists of the way to it is /"):
        find(open_file_system(volumes.found[0]), "/nothing")


@pytest.fixture
def loops(tmp_path: Path) -> Iterator[list[tuple[Path, str]]]:
    """Three disks and their loop devices."""
    need("lvm", "losetup")
    if os.geteuid():
        pytest.skip("only root may make loop devices")
    made: list[tuple[Path, str]] = []
    try:
        for number in range(3):
            image = empty(tmp_path / f"disk{number}", 20 << 20)
            made.append((image, run("losetup", "-f", "--show", image).strip()))
        yield made
    finally:
        for _image, device in made:
            run("losetup", "-d", device)


Lvm = Callable[..., str]


def lvm_of(*devices: str) -> Lvm:
    """LVM without the kernel's device mapper, so that only metadata are made; it sees these devices alone."""
    seen = ", ".join(f'"a|^{device}$|"' for device in devices)
    config = f'devices {{use_devicesfile=0 hints="none" filter=[{seen}, "r|.*|"]}} '
    config += "activation {udev_sync=0 udev_rules=0} backup {backup=0 archive=0}"
    return lambda command, *words: run("lvm", command, "--driverloaded", "n", "--config", config, *words)


def test_logical_volumes_over_several_disks(loops: list[tuple[Path, str]], tmp_path: Path) -> None:
    devices = [device for _image, device in loops]
    lvm = lvm_of(*devices)
    lvm("pvcreate", *devices)
    lvm("vgcreate", "-s", "1M", "vg-x", *devices)
    lvm("lvcreate", "-an", "-Zn", "-Wn", "-n", "linear", "-L", "30M", "vg-x")
    lvm("lvcreate", "-an", "-Zn", "-Wn", "-n", "in stripes".replace(" ", "-"), "-i", "2", "-I", "64k", "-L", "10M", "vg-x")
    lvm("lvextend", "-L", "+4M", "vg-x/linear")
    begin = int(lvm("pvs", "--noheadings", "-o", "pe_start", "--units", "b", "--nosuffix", devices[0]))
    wanted = {}
    for name, label in (("linear", "linear"), ("in-stripes", "stripes")):
        size = (34 if name == "linear" else 10) << 20
        wanted[label] = content = small_ext(tmp_path, label, size)
        at = 0
        for line in lvm(
            "lvs",
            "--noheadings",
            "--segments",
            "-o",
            "seg_size,stripe_size,seg_pe_ranges",
            "--units",
            "b",
            "--nosuffix",
            f"vg-x/{name}",
        ).splitlines():
            length, stripe, *ranges = line.split()
            places = [(one.partition(":")[0], int(one.partition(":")[2].partition("-")[0])) for one in ranges]
            step = int(stripe) or int(length)
            for number, start in enumerate(range(at, at + int(length), step)):
                device, extent = places[number % len(places)]
                image = next(image for image, other in loops if other == device)
                place = begin + (extent << 20) + number // len(places) * step
                put(image, place, content[start : start + step])
            at += int(length)
    disks = {f"vd{letter}": Image(image) for letter, (image, _device) in zip("abc", loops, strict=True)}
    volumes = find_volumes(disks)
    assert labels(volumes) == {"vg--x-linear": "linear", "vg--x-in--stripes": "stripes"}
    for volume in volumes.found[3:]:
        assert volume.content.read(0, volume.size) == wanted["linear" if "linear" in volume.name else "stripes"]
        assert len(volume.disks) >= 2
        assert volume.content.read(3_000_000, 200_000) == volume.content.read(0, volume.size)[3_000_000:3_200_000]
    missing = {volume.name: volume for volume in find_volumes({"vda": disks["vda"]}).found}
    with pytest.raises(GuestError, match="on none of the disks here"):
        open_file_system(missing["vg--x-in--stripes"])


def test_logical_volumes_within_each_other_end() -> None:
    """Mirrors of mirrors of mirrors, each of all: to the power of four, if each were opened."""
    names = [f"lv{number}" for number in range(150)]
    images = ", ".join(f'"m", "{name}"' for name in names)
    segment = f'segment1 {{ start_extent = 0 extent_count = 1 type = "raid1" raids = [ {images} ] }}'
    volumes = " ".join(f'{name} {{ status = [ "VISIBLE" ] {segment} }}' for name in names)
    section = decode_text(f"extent_size = 8 physical_volumes {{ }} logical_volumes {{ {volumes} }}")
    found = list(_Group("vg", section, {}).visible())
    assert len(found) == 150
    assert all(isinstance(one.content, GuestError) for one in found)


def test_damaged_metadata_of_lvm_are_said(loops: list[tuple[Path, str]]) -> None:
    image, device = loops[0]
    lvm = lvm_of(device)
    lvm("pvcreate", device)
    lvm("vgcreate", "vg", device)
    lvm("lvcreate", "-an", "-Zn", "-Wn", "-n", "lv", "-L", "4M", "vg")
    whole = image.read_bytes()
    assert "vg-lv" in found(find_volumes({"vda": Bytes(whole)}))
    for old, new in ((b"stripes = [", b"stripes = {"), (b" LVM2 x", b" XXXX x"), (b"extent_size = ", b"extent_size = -")):
        volumes = find_volumes({"vda": Bytes(whole.replace(old, new[: len(old)] if len(new) <= len(old) else new))})
        assert "vg-lv" not in {volume.name for volume in volumes.found if not volume.problem}
        assert volumes.problems or any(volume.problem for volume in volumes.found)


def test_of_two_copies_of_metadata_one_may_be_damaged_and_the_newer_one_counts(loops: list[tuple[Path, str]]) -> None:
    image, device = loops[0]
    lvm = lvm_of(device)
    lvm("pvcreate", "--metadatacopies", "2", device)
    lvm("vgcreate", "vg", device)
    lvm("lvcreate", "-an", "-Zn", "-Wn", "-n", "old", "-L", "4M", "vg")
    lvm("lvrename", "vg/old", "vg/new")
    whole = image.read_bytes()
    magic = b" LVM2 x[5A%r0N*>"
    assert whole.count(magic) == 2
    for place in (whole.index(magic), whole.rindex(magic)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        volumes = find_volumes({"vda": Bytes(bytes(damaged))})
        assert set(found(volumes)) == {"p0", "vg-new"}
        assert "without its magic" in str(volumes.problems[0][1])


def test_two_groups_of_one_name(loops: list[tuple[Path, str]]) -> None:
    for _image, device in loops[:2]:
        lvm = lvm_of(device)
        lvm("pvcreate", device)
        lvm("vgcreate", "vg", device)
        lvm("lvcreate", "-an", "-Zn", "-Wn", "-n", "lv", "-L", "4M", "vg")
    names = [
        volume.name for volume in find_volumes({str(number): Image(image) for number, (image, _) in enumerate(loops)}).found
    ]
    assert len(set(names[3:])) == len(names[3:]) == 2
    assert names[3] == "vg-lv"
