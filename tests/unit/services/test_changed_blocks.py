# SPDX-License-Identifier: AGPL-3.0-or-later
"""Lists of changed extents: read exactly, refused clearly, and not believed when a sample says otherwise."""

from __future__ import annotations

import json
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everywhen.block.device import BLOCK_SIZE
from everywhen.repository.intake import Ranges
from everywhen.services import changed_blocks
from everywhen.services.changed_blocks import SAMPLES, find_miss, read_changed_blocks
from everywhen.services.failures import WrongUsage
from everywhen.storage.memory import MemoryStore
from tests.laboratory import SparseDisk, World, block

SIZE = 100 * BLOCK_SIZE


def read(folder: Path, value: Any) -> Ranges:
    path = folder / "changes.json"
    path.write_text(json.dumps(value))
    return read_changed_blocks(path, SIZE)


extents = st.lists(
    st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(lambda p: (p[0], min(p[1], SIZE - p[0]))), max_size=8
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=extents, bitmap=st.booleans())
def test_all_touched_blocks_and_no_others(pairs: list[tuple[int, int]], bitmap: bool, tmp_path: Path) -> None:
    key = "offset" if bitmap else "start"
    value: list[dict[str, int]] = [{key: start, "length": length} for start, length in pairs]
    if bitmap:
        value = [one | {"type": 1} for one in value] + [{"offset": 0, "length": SIZE, "type": 0}]
    ranges = read(tmp_path, value)
    wanted = {
        at for start, length in pairs if length for at in range(start // BLOCK_SIZE, (start + length - 1) // BLOCK_SIZE + 1)
    }
    assert {at for first, end in ranges for at in range(first, end)} == wanted
    assert all(first < end for first, end in ranges)
    assert all(one[1] < two[0] for one, two in pairwise(ranges))


def test_what_has_no_end_or_no_writer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WrongUsage, match="neither a file nor a pipe"):
        read_changed_blocks(Path("/dev/zero"), SIZE)
    with pytest.raises(WrongUsage, match="cannot be read"):
        read_changed_blocks(tmp_path, SIZE)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WrongUsage, match="pipe cannot be read as a list"):
        read_changed_blocks(tmp_path / "pipe", SIZE)
    monkeypatch.setattr(changed_blocks, "_LARGEST", 20)
    with pytest.raises(WrongUsage, match="more than 20 bytes"):
        read(tmp_path, [{"start": 0, "length": 1}])


def test_a_pipe_that_is_written_slowly_is_read_to_its_end(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading), ThreadPoolExecutor(1) as pool:
        found = pool.submit(read_changed_blocks, Path(f"/dev/fd/{reading}"), SIZE)
        for part in (b'[{"start": 0, ', b'"length": 1}]'):
            time.sleep(0.05)  # long enough for a reader that does not wait to find nothing
            os.write(writing, part)
        os.close(writing)
        assert found.result() == [(0, 1)]


@pytest.mark.parametrize(
    "value", [{}, None, 1, [[]], [{}], [{"start": "0", "length": 1}], [{"start": 0, "length": SIZE + BLOCK_SIZE + 1}]]
)
def test_what_is_no_list_is_refused(value: Any, tmp_path: Path) -> None:
    with pytest.raises(WrongUsage, match=r"changes\.json"):
        read(tmp_path, value)


def test_a_bitmap_may_end_a_little_after_the_disk(tmp_path: Path) -> None:
    assert read(tmp_path, [{"offset": SIZE - 10, "length": BLOCK_SIZE, "type": 1}]) == [(99, 101)]


def test_misses_are_found_as_often_as_it_says(tmp_path: Path) -> None:
    world, store = World(tmp_path), MemoryStore()
    with world.open(store, world.create(store, encrypted=False)) as repository:
        disk = SparseDisk(200 * BLOCK_SIZE - 700, {at: block(at) for at in range(199)})
        point = world.back_up(repository, {"vda": disk})
        base = repository.block_map(point.disks["vda"].tree)
        codec = repository.codec

        def misses(now: SparseDisk, listed: Ranges) -> int:
            tries = [find_miss(now, base, listed, codec, random.Random(seed)) for seed in range(20)]
            return sum(found is not None for found in tries)

        assert misses(disk, []) == 0
        changed = disk.copy()
        changed.blocks |= {at: block(("new", at)) for at in range(0, 199, 20)}
        assert misses(changed, [(at, at + 1) for at in range(0, 199, 20)]) == 0
        # One block in twenty: 96 % of 64 samples.
        assert misses(changed, []) >= 17
        gone = disk.copy()
        gone.blocks = {at: content for at, content in disk.blocks.items() if at % 20}
        assert misses(gone, []) >= 17
        # The last block is partial; a resize looks at it anyway.
        shorter = SparseDisk(150 * BLOCK_SIZE - 9, {at: content for at, content in disk.blocks.items() if at < 150})
        assert misses(shorter, []) == 0
        assert find_miss(SparseDisk(0), base, [], codec, random.Random(1)) is None
    assert SAMPLES == 64
