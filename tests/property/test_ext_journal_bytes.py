# SPDX-License-Identifier: AGPL-3.0-or-later
"""Damaged journals: whatever the bytes are that lead to one and are in it, there is a GuestError or there are as many bytes
as were asked for; never another exception, and opening reads a few times the volume at most. Checksums are made right again
in half of the cases, so that the checks behind them are reached.
"""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everywhen.formats.images.crc32c import crc32c
from everywhen.guest.errors import GuestError
from everywhen.guest.ext_journal import replay
from everywhen.guest.ext_journal_layout import MAGIC
from tests.ext_journals import FileVolume, made, written
from tests.long_forms import SOAK

pytestmark = pytest.mark.skipif(
    not shutil.which("debugfs"), reason="debugfs (e2fsprogs) is not installed; it writes the samples"
)

EXAMPLES = 500 if SOAK else 25
Change: TypeAlias = tuple[list[tuple[int, int, int]], bool, int | None]
KINDS = {
    "ext4": ("-t ext4 -b 4096 -J size=4", "jo -c -v 3", 4096),
    "ext4 with numbers of 32 bits": ("-t ext4 -b 1024 -O ^metadata_csum,^64bit -J size=1", "jo", 1024),
    "ext3": ("-t ext3 -b 1024 -J size=1", "jo", 1024),
    "fast commits": ("-t ext4 -b 1024 -O fast_commit -J size=2", "jo -c -v 3", 1024),
}


def _log(content: bytes, block: int) -> list[int]:
    """Where the journal's own blocks are that are written."""
    return [at for at in range(0, len(content), block) if content[at : at + 4] == MAGIC.to_bytes(4, "big")]


def _seal(content: bytearray, block: int) -> None:
    """Checksums of the journal's blocks, where they are of version 3."""
    places = _log(bytes(content), block)
    if not places or not content[places[0] + 43] & 16:
        return
    uuid = bytes(content[places[0] + 48 : places[0] + 64])
    for at in places:
        kind = content[at + 7]
        field, start, end = {2: (16, 0, block), 4: (252, 0, 1024)}.get(kind, (block - 4, 0, block))
        content[at + field : at + field + 4] = bytes(4)
        summed = (b"" if kind == 4 else uuid) + bytes(content[at + start : at + end])
        content[at + field : at + field + 4] = struct.pack(">I", crc32c(summed) ^ 0xFFFFFFFF)


@pytest.fixture(scope="module", params=KINDS)
def sample(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[bytes, int]]:
    making, opening, block = KINDS[request.param]
    folder: Path = tmp_path_factory.mktemp("journal")
    (folder / "blocks").write_bytes(bytes(range(256)) * 400)
    image = made(folder / "image", *making.split())
    transactions = [f"jw {blocks} {folder}/blocks" for blocks in ("-b 1500-1509", "-b 1501,1520", "-r 1502", "-b 1503")]
    yield written(image, opening, *transactions, "jc").read_bytes(), block
    shutil.rmtree(folder)


@st.composite
def changes(draw: st.DrawFn) -> Change:
    """(place, offset, value) of single bytes; whether sums are made right; where it is cut off, in 1/256."""
    values = st.sampled_from([0, 1, 2, 8, 16, 127, 128, 255])
    one = st.tuples(st.integers(0, 15), st.integers(0, 1023) | st.integers(0, 80), values)
    return draw(st.lists(one, max_size=6)), draw(st.booleans()), draw(st.none() | st.integers(0, 255))


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
@given(changes())
def test_damage_is_an_error_or_bytes(sample: tuple[bytes, int], change: Change) -> None:
    original, block = sample
    flips, sealed, cut = change
    content = bytearray(original)
    inodes = int.from_bytes(original[max(2048, block) + 8 : max(2048, block) + 12], "little") * block
    inode_size = int.from_bytes(original[1112:1114], "little")
    log = _log(original, block)
    places = [1024, max(2048, block), inodes + 7 * inode_size, *log]
    for place, offset, value in flips:
        content[places[place % len(places)] + offset % block] = value
    if sealed:
        _seal(content, block)
    volume = FileVolume(content if cut is None else content[: len(content) * cut // 256])
    try:
        found = replay(volume)
    except GuestError:
        return
    finally:
        assert volume.bytes_read < 4 * len(original)
    if found is None:
        return
    for number in found.volume.changed:
        try:
            assert len(found.volume.read(number * block, block)) == block
        except GuestError:
            continue
