# SPDX-License-Identifier: AGPL-3.0-or-later
"""Image files that are made while they are read: what a restore writes, and the same at each opening."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from everywhen.block.device import Extent
from everywhen.block.disk_file import disk_file, identity_of
from everywhen.block.target_file import NewFile
from everywhen.formats.layouts.choose import FORMATS
from everywhen.formats.layouts.layout import LayoutError
from everywhen.formats.layouts.runs import Runs

MIB = 1 << 20
BLOCK = 65536


class Disk:
    """A device in memory; what is no extent of data reads as zeroes, and is never asked for."""

    def __init__(self, size: int, data: list[tuple[int, int]]) -> None:
        self.size = size
        self.content = bytearray(size)
        self.data = data
        for start, length in data:
            self.content[start : start + length] = random.Random(start).randbytes(length)

    def read(self, offset: int, length: int) -> bytes:
        assert any(start <= offset and offset + length <= start + size for start, size in self.stretches())
        return bytes(self.content[offset : offset + length])

    def stretches(self) -> Iterator[tuple[int, int]]:
        """Extents of data that touch are read as one."""
        begin = end = -1
        for start, length in self.data:
            if start != end:
                if end > begin:
                    yield begin, end - begin
                begin = start
            end = start + length
        if end > begin:
            yield begin, end - begin

    def extents(self) -> Iterator[Extent]:
        raise AssertionError("what is allocated was said")

    def close(self) -> None:
        pass


DISKS = {
    "empty": Disk(3 * MIB, []),
    "full, odd size": Disk(5 * MIB + 70_001, [(0, 4 * MIB), (4 * MIB, MIB + 70_001)]),
    "scattered": Disk(9 * MIB + 1, [(BLOCK, BLOCK), (2 * BLOCK, BLOCK), (5 * MIB, 3 * BLOCK), (9 * MIB, 1)]),
}


@pytest.mark.parametrize("name", list(FORMATS))
@pytest.mark.parametrize("disk", list(DISKS))
def test_it_is_what_a_restore_writes(tmp_path: Path, disk: str, name: str) -> None:
    device = DISKS[disk]
    file = disk_file(
        device, Runs.of_extents(device.data), name, identity_of("p-7fx9c2000000", 1_700_000_000_000_000_000, "vda", name)
    )
    with NewFile(str(tmp_path / "restored"), file.layout) as target:
        for start, length in device.data:
            target.write(start, device.read(start, length))
        target.finish()
    restored = (tmp_path / "restored").read_bytes()
    assert file.size == len(restored)
    pieces = random.Random(1)
    at, read = 0, bytearray()
    while at < file.size:
        read += file.read(at, length := pieces.choice([1, 511, 4096, 131072, MIB]))
        at += length
    assert read == restored
    assert file.read(file.size, 100) == b""


def test_one_moment_has_one_identity_and_no_other_the_same() -> None:
    one = identity_of("p-7fx9c2000000", 5_000_000_001, "vda", "vhdx")
    assert one == identity_of("p-7fx9c2000000", 5_000_000_001, "vda", "vhdx")
    assert str(one.uuid) == "ba5fa570-bec4-5818-919b-de01f7883607", "files that are kept somewhere would be other disks"
    assert (one.created, one.file_name) == (5, "vda.vhdx")
    others = [
        identity_of("p-7fx9c2000000+1", 5_000_000_001, "vda", "vhdx"),
        identity_of("p-7fx9c2000000", 5_000_000_001, "vdb", "vhdx"),
        identity_of("p-7fx9c2000000", 5_000_000_001, "vda", "vhd"),
    ]
    assert len({one.uuid, *(other.uuid for other in others)}) == 4


@pytest.mark.parametrize(("name", "size"), [("vhd", 3 << 40), ("vhd-fixed", 3 << 40), ("vhdx", 65 << 40)])
def test_a_disk_that_does_not_fit_is_refused(name: str, size: int) -> None:
    class Large(Disk):
        def __init__(self) -> None:
            self.size, self.data = size, []

    with pytest.raises(LayoutError):
        disk_file(Large(), Runs.of_extents([]), name, identity_of("p-7fx9c2000000", 0, "vda", name))
