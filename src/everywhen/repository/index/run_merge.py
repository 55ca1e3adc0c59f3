# SPDX-License-Identifier: AGPL-3.0-or-later
"""Walking several sorted runs side by side, in pieces that fit in memory (design 4.9.8, P6).

A piece holds the rows of all runs whose keys lie between two bounds; equal keys are never torn apart. So a merge is
"sort each piece, append it", and a join is "join each piece": numpy does the work, and every file is read once, forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from everywhen.repository.index.runs import CacheDamaged, Keys, Records, Run, RunWriter

MERGE_ROWS = 1 << 19
"""Rows of one piece of a merge: 32 MiB of 64-byte entries, three times that while they are sorted."""

Keep = Callable[[Keys, Records], tuple[Keys, Records]]


def pieces(runs: Sequence[Run], rows: int) -> Iterator[list[tuple[Keys, Records]]]:
    """About `rows` rows at a time, ascending: of each run, those between two bounds. Raises CacheDamaged."""
    counts = [run.count for run in runs]
    total = sum(counts)
    cursors = [0] * len(runs)
    steps = [max(1, rows * run.count // max(total, 1)) for run in runs]
    while True:
        # The piece ends at the first key that is the last of some run's share.
        ends = [at + step for at, step in zip(cursors, steps, strict=True)]
        bounds = [int(run.keys[end - 1]) for run, end in zip(runs, ends, strict=True) if end < run.count]
        if bounds:
            bound = min(bounds)
            ends = [run.end_of(bound, at) for run, at in zip(runs, cursors, strict=True)]
        else:
            ends = counts
        if bounds and ends == cursors:
            raise CacheDamaged("the keys of a run are not ascending")
        yield [run.read(at, end) for run, at, end in zip(runs, cursors, ends, strict=True)]
        if ends == counts:
            return
        cursors = ends


def together(parts: Sequence[Records]) -> Records:
    """Records one after the other. As plain bytes: numpy copies structures field by field, six times slower."""
    dtype = parts[0].dtype
    return np.concatenate([part.view(f"V{dtype.itemsize}") for part in parts]).view(dtype)


def sorted_piece(parts: Sequence[tuple[Keys, Records]]) -> tuple[Keys, Records]:
    """One piece as one sorted run; among equal keys, rows of earlier parts come first. `parts` are sorted, not none."""
    parts = [part for part in parts if len(part[0])] or parts[:1]
    if len(parts) == 1:
        return parts[0]
    keys = np.concatenate([part[0] for part in parts])
    order = np.argsort(keys, kind="stable")  # timsort: merges what is sorted already, twice as fast as sorting anew
    return keys.take(order), together([part[1] for part in parts]).take(order)


def merge(runs: Sequence[Run], writer: RunWriter, keep: Keep) -> None:
    """Write the rows of all `runs` that `keep` leaves of each piece. Raises CacheDamaged."""
    for parts in pieces(runs, MERGE_ROWS):
        writer.append(*keep(*sorted_piece(parts)))
