# SPDX-License-Identifier: AGPL-3.0-or-later
"""XFS and Btrfs cut off anywhere in their work: what is shown with the log replayed is what the kernel shows that does so."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from everywhen.guest.tree import FileSystem
from tests.long_forms import SOAK
from tests.power_cuts import Cuts, as_the_kernel_shows_it

MAKING = {
    "xfs": ("mkfs.xfs", "-q"),
    "xfs-1k-dir8k": ("mkfs.xfs", "--unsupported", "-q", "-b", "size=1024", "-n", "size=8192", "-l", "size=8m"),
    "btrfs": ("mkfs.btrfs", "-q"),
    "btrfs-4k-sha256": ("mkfs.btrfs", "-q", "-n", "4096", "-m", "dup", "--csum", "sha256", "-O", "^no-holes"),
    "xfs-stripe": ("mkfs.xfs", "--unsupported", "-q", "-l", "su=32k,size=16m", "-m", "rmapbt=1"),
}
MOUNTING = {"xfs-stripe": "logbsize=256k,logbufs=8"}
CUTS = 12 if SOAK else 2


@pytest.mark.timeout(1800 if SOAK else 120)
@pytest.mark.parametrize("kind", MAKING if SOAK else ["xfs-1k-dir8k"])
def test_all_is_as_the_kernel_shows_it(kind: str, tmp_path: Path) -> None:
    steps = 4000 if SOAK else 250
    cuts = Cuts(tmp_path, MAKING[kind], size=320, seed=1, steps=steps, mounting=MOUNTING.get(kind, ""))
    compared(cuts, CUTS, random.Random(kind))


@pytest.mark.timeout(1800 if SOAK else 120)
@pytest.mark.parametrize(("kind", "seed"), [("btrfs", 2), *([("xfs", 1), ("btrfs", 3), ("btrfs", 4)] if SOAK else [])])
def test_names_that_are_in_each_others_way_are_as_the_kernel_shows_them(kind: str, seed: int, tmp_path: Path) -> None:
    cuts = Cuts(tmp_path, MAKING[kind], size=320, seed=seed, steps=2500, few=True)
    compared(cuts, 25 if SOAK else 8, random.Random(seed))


def compared(cuts: Cuts, count: int, chance: random.Random) -> None:
    """So many cuts, every second one with lost writes."""
    replayed = []

    def expect(system: FileSystem, notes: tuple[str, ...]) -> None:
        assert system.notes == ()
        replayed.append(notes)

    for turn in range(count):
        number = chance.randrange(len(cuts.writes) // 4, len(cuts.writes))
        image = cuts.at(number, chance if turn % 2 else None)
        assert as_the_kernel_shows_it(image, expect) or turn % 2, number  # the kernel must take a prefix of what it wrote
        image.unlink()
    assert not any("cannot be replayed" in note for notes in replayed for note in notes), replayed
