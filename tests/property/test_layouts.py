# SPDX-License-Identifier: AGPL-3.0-or-later
"""A file that is written from a layout, and a file that is read from it, are the same; for any disk and format."""

from __future__ import annotations

import random
import uuid

from hypothesis import given, settings
from hypothesis import strategies as st

from everywhen.formats.layouts.choose import FORMATS
from everywhen.formats.layouts.layout import Identity, Layout
from everywhen.formats.layouts.runs import Runs

IDENTITY = Identity(uuid.UUID(int=77), 1_700_000_000, "disk.vmdk")
LARGEST = 9 << 20
FILL = random.Random(3).randbytes(LARGEST)

extents = st.lists(st.tuples(st.integers(0, LARGEST - 1), st.integers(0, 3 << 20)), max_size=8)


def written(layout: Layout, disk: bytearray) -> bytearray:
    """The file as a restore writes it: the computed bytes, then the disk in pieces of odd sizes."""
    file = bytearray(layout.file_size)
    for offset, content in layout.metadata():
        file[offset : offset + len(content)] = content
    for start in range(0, len(disk), 1_000_003):
        for place, length, at in layout.places(start, min(1_000_003, len(disk) - start)):
            file[at : at + length] = disk[place : place + length]
    return file


@settings(max_examples=60)
@given(
    name=st.sampled_from(sorted(FORMATS)),
    size=st.one_of(st.integers(1, LARGEST), st.sampled_from([512, 65536, 2 << 20, LARGEST])),
    chosen=extents,
    reads=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 200_000)), min_size=5, max_size=15),
)
def test_random_access_equals_the_written_file(
    name: str, size: int, chosen: list[tuple[int, int]], reads: list[tuple[float, int]]
) -> None:
    inside = [(start, min(length, size - start)) for start, length in chosen if start < size]
    disk = bytearray(size)
    for start, length in inside:
        disk[start : start + length] = FILL[start : start + length]

    def read_disk(offset: int, length: int) -> bytes:
        assert offset >= 0
        assert 0 < length <= size - offset
        return bytes(disk[offset : offset + length])

    layout = FORMATS[name](size, Runs.of_extents(inside), IDENTITY)
    file = written(layout, disk)
    assert layout.read(0, layout.file_size + 10, read_disk) == file
    for place, length in reads:
        offset = int(place * layout.file_size)
        assert layout.read(offset, length, read_disk) == file[offset : offset + length]
        if offset < layout.file_size:
            segment = layout.locate(offset)
            assert segment.start <= offset < segment.start + segment.length
    assert layout.read(layout.file_size, 1, read_disk) == b""
