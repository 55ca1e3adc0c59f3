# SPDX-License-Identifier: AGPL-3.0-or-later
"""Log trees of Btrfs with changed bytes and sums made right again: a replay or a note, and then answers or GuestErrors."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest

from everywhen.formats.images.crc32c import crc32c
from everywhen.guest.btrfs_log import BtrfsLogs
from everywhen.guest.btrfs_trees import BtrfsDevices
from everywhen.guest.errors import GuestError
from everywhen.guest.tree import FileSystem
from everywhen.guest.walking import Found, walk
from tests.guest_images import Bytes, opened
from tests.long_forms import SOAK
from tests.power_cuts import Cuts

ROUNDS = 500 if SOAK else 5


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small Btrfs whose log is to be replayed."""
    making = ("mkfs.btrfs", "-q", "-m", "single", "-n", "4096")
    cuts = Cuts(tmp_path_factory.mktemp("cut"), making, size=112, seed=9, steps=150)
    for number in range(len(cuts.writes), 0, -20):
        image = cuts.at(number)
        content = image.read_bytes()
        image.unlink()
        logs = BtrfsLogs(BtrfsDevices([Bytes(content)])).found if any(content[65632:65640]) else {}
        if sum(map(len, logs.values())) > 60:
            return content
    raise AssertionError("nothing was synced without a commit")


class Seen(BtrfsDevices):
    """Remembers where the log's nodes are."""

    def read(self, address: int, length: int, copy: int = 0) -> bytes:
        self.places = getattr(self, "places", [])
        self.places.append(self.place(address)[1])
        return super().read(address, length, copy)


def nodes(cut: bytes) -> list[int]:
    """Where the nodes of the log are."""
    devices = Seen([Bytes(cut)])
    devices.places.clear()
    BtrfsLogs(devices)
    return devices.places


def whole_again(disk: Bytes, place: int) -> None:
    """The sum of a node."""
    disk.content[place : place + 4] = crc32c(bytes(disk.content[place + 32 : place + 4096])).to_bytes(4, "little")


def use(system: FileSystem) -> list[str]:
    """Asks for everything; what was there."""
    found = []
    for item in walk(system, Found("/", system.root)):
        if isinstance(item, Found):
            found.append(item.path)
            with suppress(GuestError):
                system.attributes(item.entry)
            with suppress(GuestError):
                system.open(item.entry).read(0, 5000)
    return found


def test_a_damaged_log_is_said_and_what_was_before_it_is_shown(cut: bytes) -> None:
    with_it = opened(Bytes(cut))
    assert with_it.notes == ()
    without = Bytes(cut)
    without.content[65632:65640] = bytes(8)
    damaged = Bytes(cut)
    damaged.content[nodes(cut)[-1] + 2000] ^= 1
    system = opened(damaged)
    assert len(system.notes) == 1
    assert "checksum is wrong" in system.notes[0]
    assert use(system) == use(opened(without)) != use(with_it)
    stale = Bytes(cut)
    stale.content[65608:65616] = (int.from_bytes(cut[65608:65616], "little") - 1).to_bytes(8, "little")
    assert "generation" in opened(stale).notes[0]


@pytest.mark.timeout(1800 if SOAK else 120)
def test_changed_logs_end_in_a_replay_or_a_note(cut: bytes) -> None:
    places, said = nodes(cut), 0
    for round_ in range(ROUNDS):
        chance = random.Random(7000 + round_)
        disk = Bytes(cut)
        for _ in range(chance.choice((1, 1, 3))):
            place = chance.choice(places)
            for _ in range(chance.choice((1, 3, 10))):
                at = place + chance.choice(
                    (chance.randrange(96, 4088), chance.randrange(96, 400), chance.randrange(2500, 4088))
                )
                new = chance.choice((b"\0", b"\xff", b"\xff" * 4, b"\x80", b"\1\0\0\0", chance.randbytes(2)))
                disk.content[at : at + len(new)] = new
            whole_again(disk, place)
        with suppress(GuestError):
            system = opened(disk)
            use(system)
            said += bool(system.notes)
    assert said, "the changes were in the wrong places"
    assert said < ROUNDS or not SOAK, "no change leaves a log that can be replayed"
