# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tables that are well-formed and wrong: two blocks in one place, wrong checksums, stale copies."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from everywhen.block.image_errors import ImageDamaged
from everywhen.block.open_image import open_image
from everywhen.formats.images.crc32c import crc32c
from everywhen.formats.images.vhdx import choose_header

MIB = 1 << 20


def refused(path: Path, image: bytes | bytearray, reason: str) -> None:
    path.write_bytes(image)
    with pytest.raises(ImageDamaged, match=reason):
        open_image(str(path))


def vhd(first: int, second: int) -> bytearray:
    """A dynamic VHD of two blocks of 2 MiB, whose bitmaps are in these sectors."""
    footer = bytearray(
        struct.pack(
            ">8sIIQI4sI4sQQIII16s", b"conectix", 2, 0x10000, 512, 0, b"", 0, b"", 4 * MIB, 4 * MIB, 0, 3, 0, bytes(16)
        ).ljust(512, b"\0")
    )
    footer[64:68] = struct.pack(">I", ~sum(footer) & 0xFFFFFFFF)
    header = bytearray(
        struct.pack(">8sQQIIII16sII", b"cxsparse", 0, 1536, 0x10000, 2, 2 * MIB, 0, bytes(16), 0, 0).ljust(1024, b"\0")
    )
    header[36:40] = struct.pack(">I", ~sum(header) & 0xFFFFFFFF)
    return bytearray(footer + header + struct.pack(">II", first, second).ljust(512, b"\xff") + b"d" * (6 * MIB) + footer)


def test_vhd_blocks_that_overlap(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    refused(path, vhd(4, 4), "same place")
    refused(path, vhd(4, 4 + 4096), "same place")
    path.write_bytes(vhd(4, 4 + 4097))
    with open_image(str(path)) as disk:
        assert disk.read(0, 4 * MIB) == b"d" * (4 * MIB)


def test_vhd_footer_and_its_copy(tmp_path: Path) -> None:
    """One of the two may be damaged; a damaged header may not."""
    path = tmp_path / "disk"
    for broken in ((55,), (len(vhd(4, 4101)) - 457,), (55, len(vhd(4, 4101)) - 457)):
        image = vhd(4, 4101)
        for at in broken:
            image[at] ^= 1
        if len(broken) == 2:
            refused(path, image, "checksum")
            continue
        path.write_bytes(image)
        with open_image(str(path)) as disk:
            assert disk.size == 4 * MIB
    image = vhd(4, 4101)
    image[512 + 35] ^= 1
    refused(path, image, "checksum")


def vdi(*table: int) -> bytes:
    """A VDI of as many blocks of 1 MiB as the table has entries."""
    head = bytearray(512)
    head[64:80] = struct.pack("<4sIII", b"\x7f\x10\xda\xbe", 0x00010001, 0x180, 1)
    head[340:348] = struct.pack("<II", 512, 1024)
    head[368:388] = struct.pack("<QIII", len(table) * MIB, MIB, 0, len(table))
    return bytes(head) + struct.pack(f"<{len(table)}I", *table).ljust(512, b"\0") + b"a" * MIB + b"b" * MIB


def test_vdi_blocks(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    refused(path, vdi(1, 1), "same place")
    path.write_bytes(vdi(1, 0xFFFFFFFF, 0xFFFFFFFE, 0))
    with open_image(str(path)) as disk:
        assert disk.read(0, 4 * MIB) == b"b" * MIB + bytes(2 * MIB) + b"a" * MIB
        assert [(extent.length // MIB, extent.zero) for extent in disk.extents()] == [(1, False), (2, True), (1, False)]


def test_vdi_block_outside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(vdi(0, 2))
    with open_image(str(path)) as disk, pytest.raises(ImageDamaged, match="truncated or damaged"):
        disk.read(0, 1)


def qcow2(l1: tuple[int, ...], entries: dict[int, int], clusters: int = 8) -> bytes:
    """A qcow2 with clusters of 512 bytes: cluster 1 has the L1 table, cluster 2 an L2 table of 64 entries."""
    head = struct.pack(
        ">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, 9, len(l1) * 32768, 0, len(l1), 512, 0, 0, 0, 0, 0, 0, 0, 4, 104
    )
    table = struct.pack(f">{len(l1)}Q", *l1)
    l2 = b"".join(struct.pack(">Q", entries.get(i, 0)) for i in range(64))
    return head.ljust(512, b"\0") + table.ljust(512, b"\0") + l2 + b"x" * 512 * (clusters - 3)


@pytest.mark.parametrize(
    ("l1", "entries", "reason"),
    [
        ((1024, 1024), {}, "same L2 table"),
        ((1024 | 1,), {}, "L1 table"),
        ((1 << 40,), {}, "outside"),
        ((1024,), {0: 1536 | 2}, "L2 table"),
        ((1024,), {0: 1536 | 1 << 57}, "L2 table"),
        ((1024,), {5: 512 * 8}, "truncated or damaged"),
        ((1024,), {0: 1536, 63: 1536}, "same bytes"),
        ((1024,), {0: 1 << 62 | 1536}, "compressed cluster"),
    ],
)
def test_qcow2_tables(l1: tuple[int, ...], entries: dict[int, int], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(qcow2(l1, entries))
    with pytest.raises(ImageDamaged, match=reason), open_image(str(path)) as disk:
        disk.read(0, disk.size)


def test_qcow2_that_is_right(tmp_path: Path) -> None:
    """The same layout, so that the refusals above are for the reason they give."""
    path = tmp_path / "disk"
    path.write_bytes(qcow2((1024 | 1 << 63, 0), {0: 1536 | 1 << 63, 1: 1, 2: 512 * 7}))
    with open_image(str(path)) as disk:
        assert disk.read(0, 2048) == b"x" * 512 + bytes(512) + b"x" * 512 + bytes(512)
        assert disk.size == 65536


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [
        (24, struct.pack(">Q", 1 << 57), "size"),
        (20, struct.pack(">I", 8), "cluster_bits"),
        (20, struct.pack(">I", 63), "cluster_bits"),
        (36, struct.pack(">I", 1 << 30), "L1 table"),
        (36, struct.pack(">I", 0), "does not cover"),
        (40, struct.pack(">Q", 513), "cluster boundary"),
        (72, struct.pack(">Q", 2), "corrupt"),
        (8, struct.pack(">QI", 1 << 40, 10), "outside the header"),
        (100, struct.pack(">I", 105), "length"),
    ],
)
def test_qcow2_headers(at: int, value: bytes, reason: str, tmp_path: Path) -> None:
    image = bytearray(qcow2((1024,), {}))
    image[at : at + len(value)] = value
    refused(tmp_path / "disk", image, reason)


def test_the_newer_vhdx_header_counts() -> None:
    def header(sequence: int) -> bytes:
        raw = struct.pack("<4sIQ16s16s16sHHIQ", b"head", 0, sequence, bytes(16), bytes(16), bytes(16), 0, 1, MIB, MIB)
        raw = raw.ljust(4096, b"\0")
        return raw[:4] + struct.pack("<I", crc32c(raw)) + raw[8:]

    assert choose_header(header(3), header(4)).sequence == 4
    assert choose_header(header(5), header(4)).sequence == 5
    assert choose_header(header(3), header(4)[:-1] + b"x").sequence == 3
