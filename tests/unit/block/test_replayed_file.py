# SPDX-License-Identifier: AGPL-3.0-or-later
"""A file under the writes of a log, against a model that makes them for real."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from everywhen.block.image_errors import ImageDamaged, ImageUnsupported
from everywhen.block.open_image import open_image
from everywhen.block.replayed_file import ReplayedFile
from everywhen.formats.images.crc32c import crc32c
from everywhen.formats.images.vhdx_log import Patch

MIB = 1 << 20
PAGE = 4096


@pytest.mark.parametrize("seed", range(20))
def test_reads_through_random_patches(seed: int, tmp_path: Path) -> None:
    generator = random.Random(seed)
    path = tmp_path / "file"
    size, final = 20 * PAGE + 100, 30 * PAGE
    path.write_bytes(generator.randbytes(size))
    model = bytearray(path.read_bytes().ljust(final, b"\0"))
    patches = []
    for _ in range(25):
        offset = generator.randrange(29) * PAGE
        length = generator.choice([1, 1, 4]) * PAGE if generator.random() < 0.4 else PAGE
        content = None if length > PAGE or generator.random() < 0.3 else generator.randbytes(PAGE)
        length = min(length, final - offset)
        patches.append(Patch(offset, length, content))
        model[offset : offset + length] = content or bytes(length)
    file = ReplayedFile(str(path), tuple(patches), final)
    try:
        assert file.size == final
        assert file.read(0, final) == model
        for _ in range(100):
            start = generator.randrange(final)
            length = generator.randrange(final - start)
            assert file.read(start, length) == model[start : start + length]
        with pytest.raises(ImageDamaged, match="needs bytes"):
            file.read(final - 1, 2)
    finally:
        file.close()


@pytest.mark.parametrize(
    ("offset", "length", "reason"),
    [
        (MIB, 1 << 30, "too long"),
        (MIB, 0, "impossible place"),
        (MIB + 512, MIB, "impossible place"),
        (0, MIB, "impossible place"),
    ],
)
def test_logs_at_impossible_places(offset: int, length: int, reason: str, tmp_path: Path) -> None:
    header = bytearray(
        struct.pack("<4sIQ16s16s16sHHIQ", b"head", 0, 1, bytes(16), bytes(16), b"g" * 16, 0, 1, length, offset).ljust(
            PAGE, b"\0"
        )
    )
    header[4:8] = struct.pack("<I", crc32c(bytes(header)))
    path = tmp_path / "disk.vhdx"
    path.write_bytes(b"vhdxfile".ljust(65536, b"\0") + header.ljust(4 * MIB, b"\0"))
    with pytest.raises((ImageDamaged, ImageUnsupported), match=reason):
        open_image(str(path))
