# SPDX-License-Identifier: AGPL-3.0-or-later
"""Logs of XFS with bytes changed and their sums made right again: a replay or a note, and then answers or GuestErrors."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress

import pytest

from everywhen.formats.filesystems.xfs import decode_superblock
from everywhen.formats.filesystems.xfs_log import BLOCK, summed_headers
from everywhen.formats.images.crc32c import crc32c
from everywhen.guest.errors import GuestError
from everywhen.guest.replaying import replayed
from everywhen.guest.volumes import open_file_system
from everywhen.guest.walking import Found, walk
from everywhen.guest.xfs_log import Record, XfsLog
from everywhen.guest.xfs_replay import replay
from tests.guest_images import Bytes, the_volume
from tests.long_forms import SOAK
from tests.power_cuts import Cuts

ROUNDS = 500 if SOAK else 5
Damage = Callable[[random.Random, bytearray], None]


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small XFS whose log is to be replayed."""
    folder = tmp_path_factory.mktemp("cut")
    making = ("mkfs.xfs", "--unsupported", "-q", "-d", "size=32m,agcount=1", "-l", "size=6m")
    cuts = Cuts(folder, making, size=32, seed=3, steps=100)
    return cuts.at(len(cuts.writes) * 9 // 10).read_bytes()


def changed(chance: random.Random, content: bytearray) -> None:
    """Some bytes, or numbers."""
    for _ in range(chance.choice((1, 1, 3, 10))):
        at = chance.randrange(len(content) - 8)
        new = chance.choice((b"\0", b"\xff", b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80", b"\1\0\0\0", chance.randbytes(2)))
        content[at : at + len(new)] = new


def doubled(chance: random.Random, content: bytearray) -> None:
    """A piece again, elsewhere."""
    size = chance.choice((12, 24, 56, 128, 500))
    at, to = chance.randrange(len(content) - size), chance.randrange(len(content) - size)
    content[to : to + size] = content[at : at + size]


def whole_again(disk: Bytes, start: int, record: Record, content: bytes) -> None:
    """Writes a record with another content and the sum of it; the first words of blocks stay the turns' numbers."""
    head = record.header.headers * BLOCK
    stored = bytearray(record.stored)
    stored[head:] = content
    for at in range(head, len(stored), BLOCK):
        stored[at : at + 4] = record.stored[at : at + 4]
    summed = summed_headers(bytes(stored[:head]), len(content))[0]
    stored[32:36] = crc32c(summed + bytes(stored[head:])).to_bytes(4, "little")
    at = start + record.block * BLOCK
    disk.content[at : at + len(stored)] = stored


def use(disk: Bytes) -> tuple[str, ...]:
    """Opens it and asks for everything; what was said about the log."""
    volume, notes = replayed(the_volume(disk))
    with suppress(GuestError):
        system = open_file_system(volume)
        for item in walk(system, Found("/", system.root)):
            if isinstance(item, Found):
                with suppress(GuestError):
                    system.attributes(item.entry)
                with suppress(GuestError):
                    system.metadata(item.entry)
                with suppress(GuestError):
                    system.open(item.entry).read(0, 5000)
    return notes


def test_a_damaged_log_is_said_and_what_was_before_it_is_shown(cut: bytes) -> None:
    found = replay(Bytes(cut))
    assert found is not None
    assert found.transactions > 12
    assert use(Bytes(cut)) == ()
    superblock = decode_superblock(cut[:512])
    start = superblock.block_place(superblock.log)
    disk = Bytes(cut)
    log = XfsLog(disk, superblock)
    records = list(log.to_replay() or ())
    first = records[0]
    disk.content[start + first.block * BLOCK + 600] ^= 1
    assert len(records) > 12  # of the last eight it could be that they were being written
    notes = use(disk)
    assert len(notes) == 1
    assert "is damaged" in notes[0]
    before = open_file_system(the_volume(Bytes(cut)))
    assert open_file_system(replayed(the_volume(disk))[0]).root == before.root


@pytest.mark.timeout(1800 if SOAK else 120)
@pytest.mark.parametrize("damage", [changed, doubled])
def test_changed_logs_end_in_a_replay_or_a_note(cut: bytes, damage: Damage) -> None:
    superblock = decode_superblock(cut[:512])
    start = superblock.block_place(superblock.log)
    records = list(XfsLog(Bytes(cut), superblock).to_replay() or ())
    said = 0
    for round_ in range(ROUNDS):
        chance = random.Random(f"{damage.__name__} {round_}")
        disk = Bytes(cut)
        for _ in range(chance.choice((1, 3))):
            record = chance.choice(records)
            content = bytearray(record.stored[record.header.headers * BLOCK :])
            damage(chance, content)
            whole_again(disk, start, record, bytes(content))
        notes = use(disk)
        assert all("its log" in note.lower() or "half done" in note for note in notes), notes
        said += bool(notes)
    assert said, "the changes were in the wrong places"
    assert said < ROUNDS or not SOAK, "no change leaves a log that can be replayed"


def test_a_log_that_claims_to_be_anywhere_is_said(cut: bytes) -> None:
    for at, value in ((48, b"\xff" * 8), (96, b"\xff" * 4), (96, b"\0" * 4), (48, (7).to_bytes(8, "big"))):
        disk = Bytes(cut)
        disk.content[at : at + len(value)] = value
        notes = use(disk)
        assert len(notes) == 1, at
        assert "cannot be replayed" in notes[0]
