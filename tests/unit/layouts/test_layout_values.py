# SPDX-License-Identifier: AGPL-3.0-or-later
"""Layouts as values: limits, sizes, field by field where a mistake would pass other programs unseen."""

from __future__ import annotations

import struct
import time
import tracemalloc
import uuid

import numpy as np
import pytest

from everywhen.formats.layouts import vhd, vhdx
from everywhen.formats.layouts.choose import FORMATS
from everywhen.formats.layouts.layout import Composer, Identity, Layout, LayoutError
from everywhen.formats.layouts.runs import Runs
from everywhen.formats.layouts.sources import Literal, Repeat, Table

IDENTITY = Identity(uuid.UUID("6f9619ff-8b86-d011-b42d-00c04fc964ff"), 1_700_000_000, "web1.vmdk")
TIB = 1 << 40


def no_disk(offset: int, length: int) -> bytes:
    raise AssertionError("computed bytes must not ask the disk")


@pytest.mark.parametrize(
    ("name", "size", "instead"),
    [("vhd", 2040 << 30, "vhdx"), ("vhd-fixed", 2040 << 30, "vhdx"), ("vhdx", 64 * TIB, "qcow2"), ("qcow2", 2048 * TIB, "raw")],
)
def test_size_limits(name: str, size: int, instead: str) -> None:
    assert FORMATS[name](size, Runs.whole(size), IDENTITY).virtual_size == size
    with pytest.raises(LayoutError, match=f"Use {instead}"):
        FORMATS[name](size + 1, Runs.whole(size), IDENTITY)


def test_vmdk_is_limited_by_what_is_allocated() -> None:
    assert FORMATS["vmdk"](3 * TIB, Runs.whole(TIB), IDENTITY).virtual_size == 3 * TIB
    with pytest.raises(LayoutError, match="at most 2 TiB"):
        FORMATS["vmdk"](3 * TIB, Runs.whole(2 * TIB), IDENTITY)


@pytest.mark.parametrize("name", list(FORMATS))
def test_nothing_and_too_much_are_refused(name: str) -> None:
    with pytest.raises(LayoutError, match="0 bytes"):
        FORMATS[name](0, Runs.whole(0), IDENTITY)
    with pytest.raises(ValueError, match="allocated up to 1025"):
        FORMATS[name](1024, Runs.whole(1025), IDENTITY)


@pytest.mark.parametrize("name", list(FORMATS))
def test_odd_sizes_are_rounded_up_and_said(name: str) -> None:
    layout = FORMATS[name](1_000_001, Runs.whole(1_000_001), IDENTITY)
    assert layout.disk_size == 1_000_001
    assert layout.padding == (0 if name == "raw" else 447)
    assert layout.virtual_size == layout.disk_size + layout.padding


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_full_terabyte_is_cheap(name: str) -> None:
    """Tables are computed, not held. VHD alone needs two segments for each block of 2 MiB, as its bitmaps lie between."""
    tracemalloc.start()
    layout = FORMATS[name](TIB, Runs.whole(TIB), IDENTITY)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < (150 << 20 if name == "vhd" else 1 << 20)
    assert layout.stored <= layout.file_size
    for offset in range(0, layout.file_size, layout.file_size // 50):
        layout.read(offset, 4096, lambda _, length: bytes(length))


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_million_scattered_blocks(name: str) -> None:
    """Measured 0.1 to 0.5 s and below 250 MB at the peak; the bounds leave room for a busy machine."""
    blocks = np.unique(np.random.default_rng(7).integers(0, TIB >> 16, 1_000_000))
    began = time.perf_counter()
    layout = FORMATS[name](TIB, Runs.of_blocks(blocks, 65536, TIB), IDENTITY)
    assert time.perf_counter() - began < 5
    began = time.perf_counter()
    for offset in range(0, layout.file_size, layout.file_size // 1000):
        layout.read(offset, 512, lambda _, length: bytes(length))
    assert time.perf_counter() - began < 1


def test_composer_refuses_overlaps_and_what_leaves_the_file() -> None:
    composer = Composer(1000, Runs.whole(1000))
    composer.write(0, b"abc")
    composer.write(2, b"d")
    with pytest.raises(ValueError, match="overlap"):
        composer.layout("x", 100)
    composer = Composer(1000, Runs.whole(1000))
    composer.write(99, b"abc")
    with pytest.raises(ValueError, match="leave"):
        composer.layout("x", 100)


def test_sources_at_odd_offsets() -> None:
    assert Literal(b"abcdef").read(4, 4) == b"ef\0\0"
    assert Repeat(b"\0\1\2").read(4, 7) == b"\1\2\0\1\2\0\1"
    table = Table(Runs.of_extents([(1, 2), (5, 1)]), ">u4", 10, 3, flags=0x8000_0000, empty=7)
    whole = struct.pack(">7I", 7, 0x8000_000A, 0x8000_000D, 7, 7, 0x8000_0010, 7)
    assert all(table.read(o, n) == whole[o : o + n] for o in range(29) for n in range(29 - o))


def test_grouped_table_leaves_a_place_after_each_group() -> None:
    table = Table(Runs.of_extents([(0, 1), (2, 4)]), "<u8", 100, 1, group=2)
    whole = [100, 0, 0, 101, 102, 0, 103, 104, 0]
    assert list(struct.unpack("<9Q", table.read(0, 72))) == whole
    assert [struct.unpack("<Q", table.read(8 * i, 8))[0] for i in range(9)] == whole


@pytest.mark.parametrize(
    ("mib", "expected"),
    [
        (1, (30, 4, 17)),
        (40, (963, 5, 17)),
        (504, (1024, 16, 63)),
        (127 << 10, (65278, 16, 255)),
        (2040 << 10, (65535, 16, 255)),
    ],
)
def test_geometry(mib: int, expected: tuple[int, int, int]) -> None:
    assert vhd.geometry(mib << 20) == expected


def test_vhd_footer_fields() -> None:
    layout = FORMATS["vhd"](5 << 20, Runs.of_extents([(3 << 20, 512)]), IDENTITY)
    footer = layout.read(layout.file_size - 512, 512, no_disk)
    assert footer == layout.read(0, 512, no_disk)
    assert footer[:8] == b"conectix"
    assert struct.unpack(">I", footer[24:28])[0] == IDENTITY.created - 946_684_800
    assert footer[28:32] == b"win "
    assert struct.unpack(">QQ", footer[40:56]) == (5 << 20, 5 << 20)
    assert struct.unpack(">I", footer[60:64])[0] == 3
    assert footer[68:84] == IDENTITY.uuid.bytes
    assert struct.unpack(">I", footer[64:68])[0] == vhd.checksum(footer[:64] + bytes(4) + footer[68:])
    assert struct.unpack(">3I", layout.read(1536, 12, no_disk)) == (0xFFFF_FFFF, 4, 0xFFFF_FFFF)
    assert layout.read(2048, 512, no_disk) == b"\xff" * 512  # QEMU does not look at the bitmaps; others do


def test_vhdx_blocks_grow_with_the_disk() -> None:
    assert vhdx.block_size(1) == 1 << 20
    assert vhdx.block_size(2 * TIB) == 1 << 20
    assert vhdx.block_size(2 * TIB + 1) == 2 << 20
    assert vhdx.block_size(64 * TIB) == 32 << 20


def test_vhdx_is_aligned_and_its_copies_agree() -> None:
    layout = FORMATS["vhdx"](9 << 30, Runs.of_extents([(8 << 30, 100)]), IDENTITY)
    assert layout.file_size % (1 << 20) == 0
    first, second = (layout.read(offset, 65536, no_disk) for offset in (192 << 10, 256 << 10))
    assert first == second
    headers = [layout.read(offset, 4096, no_disk) for offset in (64 << 10, 128 << 10)]
    assert headers[0][16:] == headers[1][16:]
    assert headers[0] != headers[1]
    assert headers[0][16:32] != headers[0][32:48]


def test_identity_makes_files_differ_and_repeat() -> None:
    other = Identity(uuid.UUID(int=1), IDENTITY.created, "web1.vmdk")
    for name in ("vhd", "vhd-fixed", "vhdx", "vmdk"):
        files = [all_of(FORMATS[name](1 << 20, Runs.whole(0), chosen)) for chosen in (IDENTITY, IDENTITY, other)]
        assert files[0] == files[1] != files[2]


def test_vmdk_names_that_would_break_the_descriptor() -> None:
    for name in ('a"b', "a\nb", "a\x7fb", "x" * 5000):
        with pytest.raises(LayoutError, match="name of a VMDK"):
            FORMATS["vmdk"](1 << 20, Runs.whole(0), Identity(IDENTITY.uuid, 0, name))


def test_locate_names_segments_and_holes() -> None:
    layout = FORMATS["raw"](10_000, Runs.of_extents([(2000, 3000)]), IDENTITY)
    assert [(s.start, s.length, s.disk_offset) for s in map(layout.locate, (0, 2000, 4999, 5000, 9999))] == [
        (0, 2000, -1),
        (2000, 3000, 2000),
        (2000, 3000, 2000),
        (5000, 5000, -1),
        (5000, 5000, -1),
    ]
    for outside in (-1, 10_000):
        with pytest.raises(ValueError, match="outside"):
            layout.locate(outside)


def all_of(layout: Layout) -> bytes:
    return layout.read(0, layout.file_size, no_disk)
