# SPDX-License-Identifier: AGPL-3.0-or-later
"""Blocks like others, with their pages at other places: stored as deltas; a wrong hint costs space and nothing else."""

from __future__ import annotations

import random

import numpy as np
import pytest

from everywhen.block.device import BLOCK_SIZE
from everywhen.repository import similarity
from everywhen.repository.repository import Repository
from everywhen.repository.similarity import PAGE, Likeness, page_fingerprints
from tests.laboratory import SparseDisk, World, truth_of

PAGES = BLOCK_SIZE // PAGE
FILE = random.Random(1).randbytes(40 * BLOCK_SIZE)
"""A file that does not compress."""


def disk_of(content: bytes) -> SparseDisk:
    pieces = (content[at : at + BLOCK_SIZE].ljust(BLOCK_SIZE, b"\0") for at in range(0, len(content), BLOCK_SIZE))
    blocks = dict(enumerate(pieces))
    return SparseDisk(len(blocks) * BLOCK_SIZE, blocks)


def test_shifted_pages_are_found(world: World, repository: Repository) -> None:
    world.back_up(repository, {"vda": disk_of(FILE)})
    # The same file, five pages further on, on the disk of another VM.
    shifted = world.back_up(repository, {"vda": disk_of(random.Random(2).randbytes(5 * PAGE) + FILE)}, vm="1" * 32)
    assert shifted.disks["vda"].bytes_stored < len(FILE) // 8
    assert truth_of(repository, shifted) == world.truths[shifted.point]


def test_other_content_and_other_alignment_are_not(world: World, repository: Repository) -> None:
    world.back_up(repository, {"vda": disk_of(FILE)})
    unaligned = world.back_up(repository, {"vda": disk_of(b"x" * 100 + FILE)}, vm="1" * 32)
    assert unaligned.disks["vda"].bytes_stored > len(FILE)
    assert truth_of(repository, unaligned) == world.truths[unaligned.point]


def test_wrong_hints_cost_space_only(world: World, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fingerprints that are all the same: everything looks like everything."""
    monkeypatch.setattr(similarity, "page_fingerprints", lambda contents: np.full((len(contents), PAGES), 2, np.uint64))
    first = world.back_up(repository, {"vda": disk_of(FILE)})
    other = world.back_up(repository, {"vda": disk_of(random.Random(3).randbytes(len(FILE)))}, vm="1" * 32)
    for point in (first, other):
        assert truth_of(repository, point) == world.truths[point.point]
    assert other.disks["vda"].bytes_stored < len(FILE) * 1.01


def test_hints_that_cannot_be_read(world: World, repository: Repository) -> None:
    """The table names chunks whose records are damaged; a damaged chunk is no base."""
    world.back_up(repository, {"vda": disk_of(FILE)})
    for found in [found for found in repository.store.list("packs/") if found.size > BLOCK_SIZE]:
        whole = repository.store.get(found.name)
        repository.store.put(found.name, [whole[:1000] + bytes(len(FILE)) + whole[1000 + len(FILE) :]])
    point = world.back_up(repository, {"vda": disk_of(random.Random(2).randbytes(5 * PAGE) + FILE)}, vm="1" * 32)
    assert truth_of(repository, point) == world.truths[point.point]
    assert point.disks["vda"].bytes_stored > len(FILE)


def test_fingerprints() -> None:
    content = FILE[:BLOCK_SIZE]
    (prints,) = page_fingerprints([content])
    assert prints.shape == (PAGES,)
    assert len(set(prints.tolist())) == PAGES
    (swapped,) = page_fingerprints([content[PAGE:] + content[:PAGE]])
    assert swapped.tolist() == [*prints[1:].tolist(), prints[0]]
    assert not page_fingerprints([bytes(BLOCK_SIZE)]).any()
    # Low bits decide what is kept in the table: half of all pages, whatever they hold.
    texts = b"".join(b"%08d" % number for number in range(200 * BLOCK_SIZE // 8))
    rows = page_fingerprints([texts[at : at + BLOCK_SIZE] for at in range(0, len(texts), BLOCK_SIZE)])
    even = rows % np.uint64(similarity.SAMPLED) == 0
    assert 0.45 < even.mean() < 0.55
    for bit in (0, 7, 8 * PAGE - 1):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        assert page_fingerprints([bytes(flipped)])[0, 0] != prints[0]


def test_what_is_gone_from_the_repository_is_no_base_although_it_is_remembered(world: World, repository: Repository) -> None:
    content = FILE[:BLOCK_SIZE]
    world.back_up(repository, {"vda": disk_of(content)})
    name = repository.codec.name(content)
    (likeness,) = repository.similarity.search([content], [np.zeros(BLOCK_SIZE // PAGE, bool)])
    assert [base for base, _ in repository.similarity.bases(likeness)] == [name]
    found = repository.index.lookup_one(name)
    assert found is not None
    repository.index.exclude([found.pack])
    assert repository.similarity.bases(Likeness(likeness.pages, likeness.sought, [])) == []


def changed(content: bytes, pages: dict[int, bytes]) -> bytes:
    return b"".join(pages.get(page, content[page * PAGE : (page + 1) * PAGE]) for page in range(PAGES))


def form(repository: Repository, content: bytes) -> list[bytes]:
    """The bases that a stored block has."""
    repository.refresh()
    names = np.frombuffer(repository.codec.name(content), np.uint8).reshape(1, -1)
    return [base for base, _ in repository.fetcher.full_forms(names)[0]]


def test_what_was_in_a_blocks_place_is_its_base_while_most_of_it_is_there(world: World, repository: Repository) -> None:
    first = world.back_up(repository, {"vda": disk_of(FILE[: 2 * BLOCK_SIZE])})
    here, there = (repository.codec.name(FILE[at : at + BLOCK_SIZE]) for at in (0, BLOCK_SIZE))
    fresh = random.Random(5).randbytes(6 * PAGE)
    new = {
        "six new pages": {page: fresh[page * PAGE : (page + 1) * PAGE] for page in range(6)},
        "six from elsewhere": {page + 3: FILE[BLOCK_SIZE + page * PAGE :][:PAGE] for page in range(6)},
        "ten from elsewhere": {page + 3: FILE[BLOCK_SIZE + page * PAGE :][:PAGE] for page in range(10)},
    }
    stored, bases = {}, {}
    for what, pages in new.items():
        content = changed(FILE[:BLOCK_SIZE], pages)
        point = world.back_up(repository, {"vda": disk_of(content + FILE[BLOCK_SIZE : 2 * BLOCK_SIZE])}, parent=first)
        assert truth_of(repository, point) == world.truths[point.point]
        stored[what], bases[what] = point.disks["vda"].bytes_stored, form(repository, content)
    assert bases == {"six new pages": [here], "six from elsewhere": [here, there], "ten from elsewhere": [there, here]}
    assert 6 * PAGE < stored["six new pages"] < 6 * PAGE + 500
    assert max(stored["six from elsewhere"], stored["ten from elsewhere"]) < 500


def test_the_block_map_of_a_clone_costs_what_differs(world: World, repository: Repository) -> None:
    chance = random.Random(4)
    blocks = {number: chance.randbytes(64).ljust(BLOCK_SIZE, b"\0") for number in range(600)}
    original = SparseDisk(600 * BLOCK_SIZE, blocks)
    world.back_up(repository, {"vda": original}, vm="a" * 32)
    before = stored(repository)
    changed = {**blocks, 7: chance.randbytes(BLOCK_SIZE), 300: chance.randbytes(BLOCK_SIZE)}
    point = world.back_up(repository, {"vda": SparseDisk(600 * BLOCK_SIZE, changed)}, vm="b" * 32)
    assert truth_of(repository, point) == world.truths[point.point]
    # Two blocks that do not compress; of two leaves and a root of 8 KiB, twice each, only what differs.
    assert stored(repository) - before < 2 * BLOCK_SIZE + 6_000


def stored(repository: Repository) -> int:
    return sum(found.size for found in repository.store.list("packs/")) + sum(
        found.size for found in repository.store.list("twins/packs/")
    )
