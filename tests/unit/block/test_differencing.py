# SPDX-License-Identifier: AGPL-3.0-or-later
"""Differencing VHD and VHDX with random bitmaps, built here byte by byte (no tool makes them on Linux), against a model."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from uuid import UUID

import pytest

from everywhen.block.image_errors import ImageDamaged
from everywhen.block.open_image import open_image
from everywhen.formats.images.crc32c import crc32c

MIB = 1 << 20
SECTOR = 512
RUN = 64  # sectors that share a bit in the random bitmaps, so that they have both long and short runs


def random_sectors(generator: random.Random, count: int) -> list[bool]:
    bits: list[bool] = []
    while len(bits) < count:
        bits += [generator.random() < 0.5] * generator.choice([1, 3, RUN, 900])
    return bits[:count]


def vhd_checksum(raw: bytearray, at: int) -> None:
    raw[at : at + 4] = bytes(4)
    raw[at : at + 4] = struct.pack(">I", ~sum(raw) & 0xFFFFFFFF)


def build_vhd(generator: random.Random, below: bytes, identity: bytes, parent: tuple[str, bytes] | None) -> tuple[bytes, bytes]:
    """A VHD over `below`, which is its parent's content; with its own content."""
    block, size = 2 * MIB, len(below)
    count = -(-size // block)
    footer = bytearray(
        struct.pack(
            ">8sIIQI4sI4sQQIII16s", b"conectix", 2, 0x10000, 512, 0, b"test", 0, b"Wi2k", size, size, 0, 4, 0, identity
        ).ljust(512, b"\0")
    )
    footer[60:64] = struct.pack(">I", 4 if parent else 3)
    vhd_checksum(footer, 64)
    name = parent[0].encode("utf-16-le") if parent else b""
    header = bytearray(
        struct.pack(
            ">8sQQIIII16sII",
            b"cxsparse",
            (1 << 64) - 1,
            2048,
            0x10000,
            count,
            block,
            0,
            parent[1] if parent else bytes(16),
            0,
            0,
        ).ljust(1024, b"\0")
    )
    header[576:600] = struct.pack(">4sIIIQ", b"W2ru", 512, len(name), 0, 1536)
    vhd_checksum(header, 36)
    table_bytes = -(-count * 4 // 512) * 512
    image = bytearray(footer + header + name.ljust(512, b"\0") + bytes(table_bytes))
    content = bytearray(below)
    for number in generator.sample(range(count), count):
        entry = 0xFFFFFFFF
        if generator.random() < 0.6:
            entry = len(image) // 512
            bits = random_sectors(generator, block // SECTOR) if parent else [True] * (block // SECTOR)
            payload = generator.randbytes(block)
            image += (
                bytes(sum(bit << (7 - i) for i, bit in enumerate(bits[at : at + 8])) for at in range(0, len(bits), 8)) + payload
            )
            overlay(content, number * block, payload, bits, SECTOR)
        image[2048 + 4 * number : 2052 + 4 * number] = struct.pack(">I", entry)
    return bytes(image + footer), bytes(content)


def overlay(content: bytearray, start: int, payload: bytes, bits: list[bool], sector: int) -> None:
    """Writes the sectors of a block that are here over the parent's content."""
    for i, bit in enumerate(bits):
        at = start + i * sector
        if bit and at < len(content):
            end = min(at + sector, len(content))
            content[at:end] = payload[i * sector : i * sector + end - at]


def vhdx_checked(raw: bytes, size: int) -> bytes:
    raw = raw.ljust(size, b"\0")
    return raw[:4] + struct.pack("<I", crc32c(raw)) + raw[8:]


def guid(text: str) -> bytes:
    return UUID(text).bytes_le


def vhdx_metadata(size: int, block: int, sector: int, parent: tuple[str, UUID] | None) -> bytes:
    """The metadata region."""
    keys = {"parent_linkage": f"{{{parent[1]}}}".upper(), "relative_path": f".\\{parent[0]}"} if parent else {}
    locator = guid("b04aefb7-d19e-4a81-b789-25b8e9445913") + struct.pack("<HH", 0, len(keys))
    texts, at = b"", 20 + 12 * len(keys)
    for pair in keys.items():
        key, value = (text.encode("utf-16-le") for text in pair)
        locator += struct.pack("<IIHH", at + len(texts), at + len(texts) + len(key), len(key), len(value))
        texts += key + value
    items = [
        (guid("caa16737-fa36-4d43-b3b6-33f0aa44e76b"), struct.pack("<II", block, 2 if parent else 0)),
        (guid("2fa54224-cd1b-4876-b211-5dbed83bf4b8"), struct.pack("<Q", size)),
        (guid("8141bf1d-a96f-4709-ba47-f233a8faab5f"), struct.pack("<I", sector)),
        (guid("a8d35f2d-b30b-454d-abf7-d3d84834ab0c"), locator + texts),
    ]
    table, values = struct.pack("<8sHH20x", b"metadata", 0, len(items)), b""
    for item, value in items:
        table += struct.pack("<16sIIII", item, 65536 + len(values), len(value), 4, 0)
        values += value
    return (table.ljust(65536, b"\0") + values).ljust(MIB, b"\0")


def build_vhdx(
    generator: random.Random, below: bytes, identity: UUID, parent: tuple[str, UUID] | None, block: int, sector: int
) -> tuple[bytes, bytes]:
    """A VHDX over `below`, its parent's content; and its own content. Header, regions, table and metadata have 1 MiB each."""
    size = len(below)
    ratio = (1 << 23) * sector // block
    count = -(-size // block)
    header = vhdx_checked(
        struct.pack("<4sIQ16s16s16sHHIQ", b"head", 0, 1, bytes(16), identity.bytes_le, bytes(16), 0, 1, MIB, MIB), 4096
    )
    regions = struct.pack("<4sIII", b"regi", 0, 2, 0)
    regions += struct.pack("<16sQII", guid("2dc27766-f623-4200-9d64-115e9bfd4a08"), 2 * MIB, MIB, 1)
    regions += struct.pack("<16sQII", guid("8b7ca206-4790-4b9a-b8fe-575f050f886e"), 3 * MIB, MIB, 1)
    regions = vhdx_checked(regions, 65536)
    start = b"vhdxfile".ljust(65536, b"\0") + header.ljust(65536, b"\0") * 2 + regions * 2
    image = bytearray(start.ljust(2 * MIB, b"\0") + bytes(MIB) + vhdx_metadata(size, block, sector, parent))
    content = bytearray(below)
    bitmaps: dict[int, bytearray] = {}

    def place(slot: int, state: int, raw: bytes) -> None:
        image[2 * MIB + 8 * slot : 2 * MIB + 8 * slot + 8] = struct.pack("<Q", len(image) | state)
        image.extend(raw)

    for number in generator.sample(range(count), count):
        slot, state = number + number // ratio, generator.choice([0, 2, 3, 6, 7, 7] if parent else [0, 2, 6, 6])
        here = {0: False, 2: True, 3: True, 6: True, 7: None}[state] if parent else state != 0
        bits = random_sectors(generator, block // sector) if here is None else [here] * (block // sector)
        payload = generator.randbytes(block) if state in (6, 7) else bytes(block)
        if state in (6, 7):
            place(slot, state, payload)
        else:
            image[2 * MIB + 8 * slot] = state
        if state == 7:
            chunk = bitmaps.setdefault(number // ratio, bytearray(MIB))
            packed = bytes(sum(bit << i for i, bit in enumerate(bits[at : at + 8])) for at in range(0, len(bits), 8))
            chunk[number % ratio * len(packed) : (number % ratio + 1) * len(packed)] = packed
        overlay(content, number * block, payload, bits, sector)
    for chunk_number, raw in bitmaps.items():
        place(chunk_number * (ratio + 1) + ratio, 6, bytes(raw))
    return bytes(image), bytes(content)


def assert_reads(path: Path, content: bytes, generator: random.Random) -> None:
    with open_image(str(path)) as disk:
        assert disk.size == len(content)
        assert disk.read(0, disk.size) == content
        for extent in disk.extents():
            assert not extent.zero or not any(content[extent.start : extent.end])
        for _ in range(50):
            at = generator.randrange(len(content))
            length = min(len(content) - at, generator.choice([1, 512, 3_000_000]))
            assert disk.read(at, length) == content[at : at + length]


@pytest.mark.parametrize("seed", range(3))
def test_vhd_chain(seed: int, tmp_path: Path) -> None:
    generator = random.Random(seed)
    content, parent = bytes(9 * MIB + 512 * 5), None
    for level in range(3):
        name, identity = f"level {level}.vhd", generator.randbytes(16)
        image, content = build_vhd(generator, content, identity, parent)
        (tmp_path / name).write_bytes(image)
        assert_reads(tmp_path / name, content, generator)
        parent = (f".\\{name}", identity)


@pytest.mark.parametrize(("block", "sector"), [(MIB, 512), (2 * MIB, 4096), (32 * MIB, 512)])
def test_vhdx_chain(block: int, sector: int, tmp_path: Path) -> None:
    generator = random.Random(block)
    content, parent = bytes(7 * MIB + sector * 3), None
    for level in range(3):
        name, identity = f"level-{level}.avhdx", UUID(int=generator.getrandbits(128))
        image, content = build_vhdx(generator, content, identity, parent, block, sector)
        (tmp_path / name).write_bytes(image)
        assert_reads(tmp_path / name, content, generator)
        parent = (name, identity)


def test_vhdx_with_more_than_one_chunk(tmp_path: Path) -> None:
    """With blocks of 256 MiB, 16 share a bitmap block; the disk has 17, only the last one is here, in part."""
    block, sector, size = 256 * MIB, 512, 16 * 256 * MIB + MIB
    image, _ = build_vhdx(random.Random(0), b"", UUID(int=5), None, block, sector)
    start = bytearray(image[: 3 * MIB]) + vhdx_metadata(size, block, sector, ("base.vhdx", UUID(int=6)))
    start[2 * MIB + 17 * 8 : 2 * MIB + 18 * 8] = struct.pack("<Q", 5 * MIB | 7)
    start[2 * MIB + 33 * 8 : 2 * MIB + 34 * 8] = struct.pack("<Q", 4 * MIB | 6)
    bitmap = bytearray(MIB)
    bitmap[0] = 0b00000110  # sectors 1 and 2
    path, base = tmp_path / "child.vhdx", tmp_path / "base.vhdx"
    path.write_bytes(start + bitmap + bytes(512) + b"a" * 1024 + b"b" * (MIB - 1536))
    below, _ = build_vhdx(random.Random(0), b"", UUID(int=6), None, block, sector)
    base.write_bytes(below[: 3 * MIB] + vhdx_metadata(size, block, sector, None))
    with open_image(str(path)) as disk:
        assert [(e.start, e.length) for e in disk.extents() if not e.zero] == [(16 * block + 512, 1024)]
        assert disk.read(16 * block, 2048) == bytes(512) + b"a" * 1024 + bytes(512)


def test_overlapping_blocks_are_refused(tmp_path: Path) -> None:
    generator = random.Random(1)
    image, _ = build_vhdx(generator, bytes(8 * MIB), UUID(int=1), None, MIB, 512)
    table = bytearray(image)
    table[2 * MIB : 2 * MIB + 16] = struct.pack("<QQ", 4 * MIB | 6, 4 * MIB | 6)
    (tmp_path / "a.vhdx").write_bytes(table)
    with pytest.raises(ImageDamaged, match="same place"):
        open_image(str(tmp_path / "a.vhdx"))
