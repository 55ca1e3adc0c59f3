# SPDX-License-Identifier: AGPL-3.0-or-later
"""Changes over a device are what they would be in one long array of bytes."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from itertools import chain

from hypothesis import given, settings
from hypothesis import strategies as st

from everywhen.block.device import BLOCK_SIZE
from everywhen.block.patched import PatchedDevice, Patches
from tests.laboratory import SparseDisk, block

SIZE = 3 * BLOCK_SIZE + 1000
changes = st.lists(
    st.tuples(st.booleans(), st.integers(0, SIZE - 1), st.sampled_from([0, 1, 511, 512, 4096, BLOCK_SIZE, 2 * BLOCK_SIZE + 7])),
    max_size=25,
)


def applied(content: bytearray, patches: Patches, steps: list[tuple[bool, int, int]], seed: int) -> None:
    chance = random.Random(seed)
    for zero, offset, length in steps:
        length = min(length, SIZE - offset)
        data = bytes(length) if zero else chance.randbytes(length)
        content[offset : offset + length] = data
        if zero:
            patches.zero(offset, length)
        else:
            patches.write(offset, data)


@settings(max_examples=150)
@given(changes, changes, st.integers(0, SIZE), st.integers(0, SIZE))
def test_like_an_array(below: list[tuple[bool, int, int]], above: list[tuple[bool, int, int]], one: int, other: int) -> None:
    base = SparseDisk(2 * BLOCK_SIZE, {0: block(1), 1: block(2)})
    content = bytearray(base.read(0, base.size).ljust(SIZE, b"\0"))
    under, over = Patches(), Patches()
    applied(content, under, below, 1)
    applied(content, over, above, 2)
    under.lay(over)
    device = PatchedDevice(base, under, SIZE)
    assert device.read(0, SIZE) == content
    start, end = sorted((one, other))
    assert device.read(start, end - start) == content[start:end]
    touched = {number for first, last in under.ranges(SIZE) for number in range(first, last)}
    before = base.read(0, base.size).ljust(SIZE, b"\0")
    differing = {at for at in range(4) if content[at << 16 : at + 1 << 16] != before[at << 16 : at + 1 << 16]}
    assert differing <= touched
    assert len(under) == len(touched)


class Counted(SparseDisk):
    """Knows which blocks were asked for together."""

    def read_blocks(self, blocks: list[int]) -> list[bytes]:
        self.asked.append(blocks)
        return super().read_blocks(blocks)

    asked: list[list[int]]


def test_what_lies_under_changed_blocks_is_read_together_and_once() -> None:
    changed = random.Random(5).sample(range(400), 150)
    base = Counted(300 * BLOCK_SIZE - 5000, {number: block(number % 251 + 1) for number in range(0, 300, 2)})
    base.asked = []
    patches = Patches()
    for number in changed:
        patches.write(number * BLOCK_SIZE + 512, b"new" * 100)
    patches.write(changed[0] * BLOCK_SIZE, block(7))  # hides all of the base
    device = PatchedDevice(base, patches, 400 * BLOCK_SIZE)
    for number in sorted(changed):
        expected = bytearray(base.read(number * BLOCK_SIZE, BLOCK_SIZE) if number < 300 else bytes(BLOCK_SIZE))
        if number == 299:
            expected[-5000:] = bytes(5000)
        expected[512:812] = b"new" * 100
        assert device.read(number * BLOCK_SIZE, BLOCK_SIZE) == (block(7) if number == changed[0] else expected)
    assert list(chain(*base.asked)) == sorted(number for number in changed[1:] if number < 300)
    assert max(map(len, base.asked)) == 64
    assert len(base.asked) <= 3


@settings(max_examples=150)
@given(changes, changes, st.integers(0, SIZE), st.integers(0, SIZE))
def test_like_an_array_with_contents_put_aside(
    below: list[tuple[bool, int, int]], above: list[tuple[bool, int, int]], one: int, other: int
) -> None:
    content, patches = bytearray(SIZE), Patches()
    kept: list[bytes] = []

    def put(some: bytes) -> Callable[[], bytes]:
        kept.append(some)
        return partial(kept.__getitem__, len(kept) - 1)

    for seed, steps in enumerate((below, above)):
        applied(content, patches, steps, seed)
        patches.put_aside(put)
        assert patches.memory == 0
    applied(content, patches, above[::2], 3)
    assert patches.memory <= SIZE
    start, end = sorted((one, other))
    assert PatchedDevice(SparseDisk(0), patches, SIZE).read(start, end - start) == content[start:end]
    under = Patches()
    under.lay(patches)
    assert PatchedDevice(SparseDisk(0), under, SIZE).read(0, SIZE) == content
