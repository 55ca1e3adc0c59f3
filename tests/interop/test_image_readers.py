# SPDX-License-Identifier: AGPL-3.0-or-later
"""Images that qemu-img made, in every form it can make, read and compared byte for byte with what it reads itself."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from everywhen.block.device import BlockDevice
from everywhen.block.image_errors import ImageDamaged, ImageError, ImageMissing, ImageUnsupported, ReferenceRefused
from everywhen.block.open_image import open_image

pytestmark = pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed")

MIB = 1 << 20
SIZE = 12 * MIB + 512 * 3


def qemu_img(*arguments: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True, timeout=60)


def qemu_io(image: Path, *commands: str, options: tuple[str, ...] = ()) -> None:
    """Runs commands against an image, which is opened by its content."""
    arguments = [part for command in commands for part in ("-c", command)]
    run = subprocess.run(["qemu-io", *options, *arguments, str(image)], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "failed" not in run.stdout, run.stdout


def converted(image: Path) -> bytes:
    """The disk as qemu-img reads it. (It has to be told of fixed VHDs, whose footer it does not look for.)"""
    raw = image.with_name(image.name + ".raw-by-qemu")
    footer = image.read_bytes()[-512:].startswith(b"conectix")
    qemu_img("convert", *(["-f", "vpc"] if footer else []), "-O", "raw", image, raw)
    content = raw.read_bytes()
    raw.unlink()
    return content


def content_of(disk: BlockDevice) -> bytes:
    """The whole disk, in steps of 4 MiB."""
    return b"".join(disk.read(at, min(4 * MIB, disk.size - at)) for at in range(0, disk.size, 4 * MIB))


def assert_extents_true(disk: BlockDevice, content: bytes) -> None:
    """Extents cover the disk in order, neighbours differ, zero extents are zero; random reads agree with `content`."""
    at, before = 0, None
    for extent in disk.extents():
        assert extent.start == at
        assert extent.length > 0
        assert extent.zero is not before
        assert not extent.zero or not any(content[extent.start : extent.end]), f"{extent} is not zero"
        at, before = extent.end, extent.zero
    assert at == disk.size
    generator = random.Random(1)
    for _ in range(200):
        start = generator.randrange(disk.size)
        length = min(disk.size - start, generator.choice([1, 511, 4096, 70_000]))
        assert disk.read(start, length) == content[start : start + length]


@pytest.fixture(scope="session")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw disk with random, repetitive and zero parts, odd in size."""
    generator = random.Random(7)
    path = tmp_path_factory.mktemp("pattern") / "disk.raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
        for start, length, noisy in [
            (0, 70_000, True),
            (MIB, 3 * MIB, False),
            (5 * MIB + 512, 4096, True),
            (7 * MIB, MIB, True),
        ]:
            file.seek(start)
            file.write(generator.randbytes(length) if noisy else b"the same again. " * (length // 16))
        file.seek(SIZE - 512)
        file.write(generator.randbytes(512))
    return path


def assert_same(image: Path, expected: bytes, **options: bool) -> None:
    with open_image(str(image), **options) as disk:  # type: ignore[arg-type]
        assert disk.size == len(expected)
        assert content_of(disk) == expected
        assert_extents_true(disk, expected)


CONVERSIONS = {
    **{f"qcow2-cluster-{size}": ["-O", "qcow2", "-o", f"cluster_size={size}"] for size in (512, 4096, 65536, 2 * MIB)},
    **{f"qcow2-zlib-{size}": ["-c", "-O", "qcow2", "-o", f"cluster_size={size}"] for size in (512, 65536, 2 * MIB)},
    **{
        f"qcow2-zstd-{size}": ["-c", "-O", "qcow2", "-o", f"cluster_size={size},compression_type=zstd"]
        for size in (4096, 65536, 2 * MIB)
    },
    "qcow2-0.10": ["-O", "qcow2", "-o", "compat=0.10"],
    "qcow2-lazy": ["-O", "qcow2", "-o", "lazy_refcounts=on"],
    "qcow2-subclusters": ["-O", "qcow2", "-o", "extended_l2=on"],
    "qcow2-subclusters-zlib": ["-c", "-O", "qcow2", "-o", "extended_l2=on,cluster_size=128k"],
    "qcow2-metadata": ["-O", "qcow2", "-o", "preallocation=metadata"],
    "qcow2-falloc": ["-O", "qcow2", "-o", "preallocation=falloc"],
    "qcow2-full": ["-O", "qcow2", "-o", "preallocation=full"],
    "qcow2-refcounts-1": ["-O", "qcow2", "-o", "refcount_bits=1"],
    "vhd-dynamic": ["-O", "vpc", "-o", "force_size=on"],
    "vhd-fixed": ["-O", "vpc", "-o", "subformat=fixed,force_size=on"],
    "vhdx-dynamic": ["-O", "vhdx"],
    "vhdx-fixed": ["-O", "vhdx", "-o", "subformat=fixed"],
    "vhdx-block": ["-O", "vhdx", "-o", "block_size=1M"],
    "vhdx-zero-state": ["-O", "vhdx", "-o", "block_state_zero=off"],
    **{
        f"vmdk-{kind}": ["-O", "vmdk", "-o", f"subformat={kind}"]
        for kind in (
            "monolithicSparse",
            "monolithicFlat",
            "twoGbMaxExtentSparse",
            "twoGbMaxExtentFlat",
            "streamOptimized",
        )
    },
    "vmdk-zeroed-grains": ["-O", "vmdk", "-o", "zeroed_grain=on"],
    "vdi-dynamic": ["-O", "vdi"],
    "vdi-static": ["-O", "vdi", "-o", "static=on"],
    "raw": ["-O", "raw"],
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_conversions(name: str, pattern: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    qemu_img("convert", *CONVERSIONS[name], pattern, image)
    expected = converted(image)
    assert expected[:SIZE] == pattern.read_bytes()
    assert_same(image, expected)


@pytest.mark.parametrize("options", ["", "cluster_size=512", "extended_l2=on", "cluster_size=2M,extended_l2=on", "compat=0.10"])
def test_qcow2_written_in_place(options: str, tmp_path: Path) -> None:
    """Random writes, discards, zeroes and compressed writes; the file's clusters are in no order afterwards."""
    generator = random.Random(options)
    image = tmp_path / "image.qcow2"
    qemu_img("create", "-f", "qcow2", *(["-o", options] if options else []), image, str(SIZE))
    commands = []
    for _ in range(60):
        offset, length = generator.randrange(SIZE // 512) * 512, generator.choice([512, 4096, 70_144, 300_032])
        length = min(length, SIZE - offset)
        verb = generator.choice(["write -P 17", "write -P 99", "write -z", "write -z -u", "discard", "write -P 5"])
        commands.append(f"{verb} {offset} {length}")
    qemu_io(image, *commands)
    assert_same(image, converted(image))


def test_qcow2_compressed_clusters_among_subclusters(tmp_path: Path) -> None:
    image = tmp_path / "image.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", "extended_l2=on", image, "1M")
    qemu_io(image, "write -P 3 70000 512", "write -c -P 9 128k 64k", "write -P 8 200k 2k", "write -c -P 7 256k 64k")
    assert_same(image, converted(image))


@pytest.mark.parametrize("sizes", [("4M", "6M", "2M"), ("6M", "2M", "5M"), ("3M", "3M", "3M")])
@pytest.mark.parametrize("base", ["raw", "qcow2", "vmdk", "vdi", "vpc"])
def test_backing_chains(sizes: tuple[str, str, str], base: str, tmp_path: Path) -> None:
    """Three levels, each smaller or larger than the next, with zeroes and holes that hide the level below."""
    bottom, middle, top = tmp_path / f"bottom.{base}", tmp_path / "middle.qcow2", tmp_path / "top.qcow2"
    qemu_img("create", "-f", base, *(["-o", "force_size=on"] if base == "vpc" else []), bottom, sizes[0])
    qemu_io(bottom, "write -P 1 0 1M", "write -P 2 1900k 128k", options=("-f", base))
    qemu_img("create", "-f", "qcow2", "-b", bottom.name, "-F", base, middle, sizes[1])
    qemu_io(middle, "write -P 3 512k 64k", "write -z 128k 128k", "write -P 4 1500k 100k")
    qemu_img("create", "-f", "qcow2", "-o", "cluster_size=4k", "-b", middle.name, "-F", "qcow2", top, sizes[2])
    qemu_io(top, "write -P 5 520k 4k", "write -z 8k 16k", "write -P 6 1996k 4k")
    for image in (top, middle):
        assert_same(image, converted(image))


def test_subclusters_over_a_backing_file(tmp_path: Path) -> None:
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    qemu_img("create", "-f", "qcow2", base, "2M")
    qemu_io(base, "write -P 1 0 1M")
    qemu_img("create", "-f", "qcow2", "-o", "extended_l2=on", "-b", base.name, "-F", "qcow2", top)
    qemu_io(top, "write -P 2 10k 2k", "write -z 40k 4k", "write -P 4 1022k 4k")
    assert_same(top, converted(top))


@pytest.mark.parametrize("raw", ["on", "off"])
def test_qcow2_external_data_file(raw: str, pattern: Path, tmp_path: Path) -> None:
    image = tmp_path / "image.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path}/data.bin,data_file_raw={raw}", image, str(SIZE))
    qemu_io(image, "write -P 6 0 64k", "write -P 7 3M 100k", "write -z 3100k 64k")
    assert_same(image, converted(image))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data.bin").rename(tmp_path / "elsewhere" / "data.bin")
    with pytest.raises(ImageMissing, match=r"data\.bin"):
        open_image(str(image))


def test_internal_snapshots_are_ignored(tmp_path: Path) -> None:
    image = tmp_path / "image.qcow2"
    qemu_img("create", "-f", "qcow2", image, "2M")
    qemu_io(image, "write -P 1 0 1M")
    qemu_img("snapshot", "-c", "before", image)
    qemu_io(image, "write -P 2 512k 1M")
    assert_same(image, converted(image))


def test_dirty_qcow2_of_a_killed_writer(tmp_path: Path) -> None:
    """Lazy refcounts leave the dirty bit behind; the guest's clusters are right."""
    image = tmp_path / "image.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", "lazy_refcounts=on", image, "2M")
    subprocess.run(
        ["qemu-io", "-c", "write -P 9 64k 200k", "-c", "flush", "-c", "abort", str(image)], capture_output=True, check=False
    )
    assert image.read_bytes()[79] & 1, "the image is not dirty"
    with open_image(str(image)) as disk:
        assert disk.read(64 << 10, 200 << 10) == b"\x09" * (200 << 10)


def test_vhdx_log_of_a_killed_writer(tmp_path: Path) -> None:
    """QEMU logs its writes to the block table; after a kill the log is there, whether or not the table is."""
    image = tmp_path / "image.vhdx"
    qemu_img("create", "-f", "vhdx", "-o", "block_size=1M", image, "16M")
    subprocess.run(
        ["qemu-io", "-c", "write -P 9 64k 200k", "-c", "write -P 4 9M 1M", "-c", "abort", str(image)],
        capture_output=True,
        check=False,
    )
    with open_image(str(image)) as disk:
        ours = content_of(disk)
    repaired = tmp_path / "repaired.vhdx"
    shutil.copyfile(image, repaired)
    qemu_img("check", "-r", "all", repaired)
    assert ours == converted(repaired)


def test_vmdk_with_a_parent(tmp_path: Path) -> None:
    base, top = tmp_path / "base.vmdk", tmp_path / "top.vmdk"
    qemu_img("create", "-f", "vmdk", base, "4M")
    qemu_io(base, "write -P 1 0 1M")
    qemu_img("create", "-f", "vmdk", "-b", base.name, "-F", "vmdk", top)
    qemu_io(top, "write -P 2 64k 64k", "write -P 3 2M 64k")
    assert_same(top, converted(top))
    qemu_io(base, "write -P 4 3M 64k")  # gives it a new content id: what the child holds no longer fits
    with pytest.raises(ImageDamaged, match="another state"):
        open_image(str(top))


def test_vmdk_of_several_extents(tmp_path: Path) -> None:
    """More than 2 GB, so that there are two extents; data on both sides of the seam."""
    image = tmp_path / "disk.vmdk"
    qemu_img("create", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", image, "2200M")
    qemu_io(image, "write -P 1 2047M 1M", "write -P 2 2048M 64k", "write -P 3 2199M 1M", "write -P 3 2050M 64k")
    with open_image(str(image)) as disk:
        assert disk.read(2048 * MIB - 10, 20) == b"\x01" * 10 + b"\x02" * 10
        assert [(e.start, e.end) for e in disk.extents() if not e.zero] == [
            (2047 * MIB, 2048 * MIB + 65536),
            (2050 * MIB, 2050 * MIB + 65536),
            (2199 * MIB, 2200 * MIB),
        ]
    descriptor = image.read_text()
    image.write_text(descriptor.replace("RW 4194304", "RW 4194303"))
    with pytest.raises(ImageDamaged, match="says"):
        open_image(str(image))
    image.write_text(descriptor)
    (tmp_path / "disk-s002.vmdk").unlink()
    with pytest.raises(ImageMissing, match="disk-s002"):
        open_image(str(image))


def test_encrypted_qcow2_is_refused(tmp_path: Path) -> None:
    """By the header's field (AES, LUKS), as QEMU takes seconds to make a real one."""
    image = tmp_path / "image.qcow2"
    qemu_img("create", "-f", "qcow2", image, "1M")
    for method in (1, 2):
        with image.open("r+b") as file:
            file.seek(35)
            file.write(bytes([method]))
        with pytest.raises(ImageUnsupported, match="encrypted"):
            open_image(str(image))


def test_foreign_formats_are_refused(tmp_path: Path) -> None:
    for form in ("qcow", "qed", "parallels"):
        qemu_img("create", "-f", form, tmp_path / form, "4M")
        with pytest.raises(ImageUnsupported):
            open_image(str(tmp_path / form))


def test_references_outside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "vm").mkdir()
    base, top, link = tmp_path / "base.raw", tmp_path / "vm" / "top.qcow2", tmp_path / "vm" / "link.raw"
    base.write_bytes(b"x" * MIB)
    qemu_img("create", "-f", "qcow2", "-b", "../base.raw", "-F", "raw", top)
    with pytest.raises(ReferenceRefused, match="outside"):
        open_image(str(top))
    with open_image(str(top), allow_outside=True) as disk:
        assert disk.read(0, MIB) == b"x" * MIB
        assert disk.summary.chain == ("qcow2", "raw")
    link.symlink_to(base)
    qemu_img("rebase", "-u", "-b", "link.raw", "-F", "raw", top)
    with pytest.raises(ReferenceRefused, match="outside"):
        open_image(str(top))


def test_loops_and_long_chains(tmp_path: Path) -> None:
    images = [tmp_path / f"{i}.qcow2" for i in range(70)]
    qemu_img("create", "-f", "qcow2", images[0], "1M")
    qemu_img("create", "-f", "qcow2", "-u", "-b", images[0].name, "-F", "qcow2", images[1], "1M")
    qemu_img("rebase", "-u", "-b", images[1].name, "-F", "qcow2", images[0])
    with pytest.raises(ReferenceRefused, match="itself"):
        open_image(str(images[1]))
    template = images[1].read_bytes()
    for i in range(2, 70):
        below, name = f"{i - 1}.qcow2".encode(), images[0].name.encode()
        images[i].write_bytes(template.replace(name, below) if len(below) == len(name) else _renamed(template, name, below))
    qemu_img("rebase", "-u", "-b", "", images[0])
    with pytest.raises(ReferenceRefused, match="longer"):
        open_image(str(images[69]))
    with open_image(str(images[30])) as disk:
        assert len(disk.files) == 31


def _renamed(image: bytes, name: bytes, by: bytes) -> bytes:
    """A qcow2 whose backing file's name is one byte longer."""
    assert len(by) == len(name) + 1
    at = image.index(name)
    return image[:16] + len(by).to_bytes(4, "big") + image[20:at] + by + image[at + len(by) :]


@pytest.mark.parametrize("name", ["nbd://localhost/disk", 'json:{"driver":"raw"}', "ssh:host"])
def test_network_backing_files_are_refused(name: str, tmp_path: Path) -> None:
    image = tmp_path / "image.qcow2"
    qemu_img("create", "-f", "qcow2", "-u", "-b", name, "-F", "raw", image, "1M")
    with pytest.raises(ImageUnsupported, match="not a file"):
        open_image(str(image))


@pytest.mark.parametrize("form", ["qcow2", "vpc", "vhdx", "vmdk", "vdi"])
def test_truncated_images_are_refused(form: str, pattern: Path, tmp_path: Path) -> None:
    """Wherever the file is cut, there is an error or there are the right bytes, as far as they are still there."""
    image = tmp_path / "image"
    qemu_img("convert", "-O", form, pattern, image)
    whole, expected = image.read_bytes(), converted(image)
    cuts = [0, 1, 511, 512, 1023, 4096, 65536, 200_000, len(whole) // 2, len(whole) - 1024, len(whole) - 513]
    for cut in cuts:
        image.write_bytes(whole[:cut])
        try:
            with open_image(str(image), format={"vpc": "vhd"}.get(form, form)) as disk:
                got = content_of(disk)
        except ImageError:
            continue
        assert got == expected, f"cut at {cut}"


def test_large_sparse_image_is_listed_quickly(tmp_path: Path) -> None:
    """1 TB with 1,000 clusters all over it: it takes a tenth of a second, as nothing but tables is read."""
    image = tmp_path / "image.qcow2"
    qemu_img("create", "-f", "qcow2", image, "1T")
    qemu_io(image, *[f"write -P 1 {n * 997}M 64k" for n in range(1000)], options=("-t", "unsafe"))
    begin = time.perf_counter()
    with open_image(str(image)) as disk:
        extents = list(disk.extents())
    assert len(extents) == 2000
    assert time.perf_counter() - begin < 3


def test_json_of_qemu_agrees_on_the_size(tmp_path: Path) -> None:
    """The disk's size is qemu's for odd sizes too."""
    image = tmp_path / "image.qcow2"
    qemu_img("create", "-f", "qcow2", image, "1234567")
    told = json.loads(subprocess.run(["qemu-img", "info", "--output=json", str(image)], capture_output=True, check=True).stdout)
    with open_image(str(image)) as disk:
        assert disk.size == told["virtual-size"]


def test_block_device(pattern: Path, tmp_path: Path) -> None:
    """The device's size is not that of its node; its content is that of the file behind it."""
    backing = tmp_path / "backing"
    shutil.copy(pattern, backing)
    attached = subprocess.run(
        ["losetup", "--find", "--show", "--read-only", str(backing)], capture_output=True, text=True, check=False
    )
    if attached.returncode:
        pytest.skip("loop devices cannot be made here")
    try:
        with open_image(attached.stdout.strip()) as disk:
            assert disk.size == SIZE
            assert content_of(disk) == pattern.read_bytes()
            assert [extent.length for extent in disk.extents()] == [SIZE]
    finally:
        subprocess.run(["losetup", "--detach", attached.stdout.strip()], check=True)


def test_an_extent_without_its_descriptor_says_so(tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    qemu_img("create", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", image, "10M")
    with open_image(str(image)) as disk:
        assert disk.summary.remarks == ()
    with open_image(str(tmp_path / "disk-s001.vmdk")) as disk:
        assert "without its descriptor" in disk.summary.remarks[0]
