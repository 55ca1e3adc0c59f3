# SPDX-License-Identifier: AGPL-3.0-or-later
"""Seeded changes of an image: random writes of 4 KiB, and the list of them as `--changed-blocks` takes it."""

from __future__ import annotations

import bisect
import itertools
import json
import os
import random
from dataclasses import dataclass
from pathlib import Path

from bench.proof import data_extents

PAGE = 4096


@dataclass(frozen=True, slots=True)
class Changes:
    """What was written: the list as a file, and the number of bytes."""

    listed: Path
    nbytes: int


def change(image: Path, seed: str, writes: int, listed: Path, *, only_data: bool = False) -> Changes:
    """Write `writes` pages of random bytes at random places, all different; with `only_data` only where there is data.

    Random bytes cannot be compressed: what a backup stores of them is at least as much.
    """
    chance = random.Random(seed)
    with image.open("r+b", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        areas = [
            (start // PAGE, end // PAGE) for start, end in (data_extents(file.fileno(), size) if only_data else [(0, size)])
        ]
        before = list(itertools.accumulate((end - first for first, end in areas), initial=0))
        picked = chance.sample(range(before[-1]), min(writes, before[-1]))
        chosen = sorted(areas[(at := bisect.bisect_right(before, pick) - 1)][0] + pick - before[at] for pick in picked)
        for page in chosen:
            os.pwrite(file.fileno(), chance.randbytes(PAGE), page * PAGE)
        os.fsync(file.fileno())
    listed.write_text(json.dumps([{"start": page * PAGE, "length": PAGE} for page in chosen]))
    return Changes(listed, len(chosen) * PAGE)
