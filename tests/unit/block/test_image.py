# SPDX-License-Identifier: AGPL-3.0-or-later
"""Reading and zero extents over any mapping and any chain, against a model: a bytearray."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from everywhen.block.host_file import HostFile
from everywhen.block.image import Image
from everywhen.block.image_errors import ImageDamaged
from everywhen.block.mapping import PARENT, PLAIN, ZERO, BlockMap, FlatMap, JoinedMap, Mapping, Units

UNIT = 4096


def random_image(
    generator: random.Random, path: Path, units: int, tail: int, parent: tuple[Image, bytes] | None
) -> tuple[Image, bytes]:
    """An image of random units over a parent, and its content."""
    size = units * UNIT - tail
    kinds = np.array([generator.choice([PARENT, PARENT, ZERO, PLAIN]) for _ in range(units)], dtype=np.uint8)
    order = list(range(units))
    if generator.random() < 0.5:
        generator.shuffle(order)
    places = np.array(order, dtype=np.int64) * UNIT
    path.write_bytes(generator.randbytes(units * UNIT))
    stored, below = path.read_bytes(), (parent[1] if parent else b"") + bytes(size)
    content = b"".join(
        {
            PARENT: below[i * UNIT : (i + 1) * UNIT],
            ZERO: bytes(UNIT),
            PLAIN: stored[places[i] : places[i] + UNIT],
        }[int(kinds[i])]
        for i in range(units)
    )[:size]
    host = HostFile(str(path))
    mapping = BlockMap(host, size, UNIT, lambda a, b: Units(UNIT, kinds[a:b], places[a:b]), generator.choice([1, 3, 64]))
    return Image("test", mapping, [host], parent[0] if parent else None), content


@pytest.mark.parametrize("seed", range(40))
def test_chains_of_random_images(seed: int, tmp_path: Path) -> None:
    generator = random.Random(seed)
    made = None
    for level in range(generator.randint(1, 4)):
        path = tmp_path / str(level)
        made = random_image(generator, path, generator.randint(1, 60), generator.choice([0, 1, 512, 4000]), made)
    assert made
    image, content = made
    with image:
        assert image.read(0, image.size) == content
        for _ in range(100):
            start = generator.randrange(len(content) + 1)
            length = generator.randint(0, len(content) - start)
            assert image.read(start, length) == content[start : start + length]
        at = 0
        for extent in image.extents():
            assert extent.start == at
            # Random data are never zero, so the extents are exact here.
            assert extent.zero is not any(content[at : extent.end])
            at = extent.end
        assert at == image.size


def test_reads_outside_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x" * 1000)
    host = HostFile(str(path))
    with Image("raw", FlatMap(host, 1000), [host]) as image:
        for offset, length in ((-1, 1), (0, 1001), (1000, 1), (5, -1)):
            with pytest.raises(ValueError, match="not inside"):
                image.read(offset, length)
        assert image.read(1000, 0) == b""


def test_holes_of_large_runs_are_zero_extents(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(64 << 20)
        file.seek(10 << 20)
        file.write(b"x" * 65536)
    host = HostFile(str(path))
    with Image("raw", FlatMap(host, 60 << 20, place=4 << 20), [host]) as image:
        data = [(extent.start, extent.end) for extent in image.extents() if not extent.zero]
    assert data == [(6 << 20, (6 << 20) + 65536)]


def test_joined_parts(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(range(256)) * 16)
    host = HostFile(str(path))
    parts: list[Mapping] = [FlatMap(host, 1000, place=50), FlatMap(host, 0), FlatMap(host, 500, kind=ZERO), FlatMap(host, 700)]
    with Image("test", JoinedMap(parts), [host]) as image:
        assert image.size == 2200
        whole = path.read_bytes()
        assert image.read(0, 2200) == whole[50:1050] + bytes(500) + whole[:700]
        assert [(extent.start, extent.zero) for extent in image.extents()] == [(0, False), (1000, True), (1500, False)]


def test_a_file_cut_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x" * 100_000)
    host = HostFile(str(path))
    with Image("raw", FlatMap(host, 100_000), [host]) as image:
        before = image.fingerprint()
        assert before == image.fingerprint()
        with path.open("r+b") as file:
            file.truncate(50_000)
        assert image.fingerprint() != before
        with pytest.raises(ImageDamaged, match="became shorter"):
            image.read(0, 100_000)


def test_a_place_outside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x" * UNIT)
    host = HostFile(str(path))
    units = Units(UNIT, np.array([PLAIN, PLAIN], dtype=np.uint8), np.array([0, UNIT], dtype=np.int64))
    with Image("test", BlockMap(host, 2 * UNIT, UNIT, lambda a, b: units, 8), [host]) as image:
        with pytest.raises(ImageDamaged, match="truncated or damaged"):
            image.read(0, 1)
        with pytest.raises(ImageDamaged, match="truncated or damaged"):
            list(image.extents())
