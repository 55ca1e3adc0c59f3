# SPDX-License-Identifier: AGPL-3.0-or-later
"""Names in folders that are kept: the first of two counts, damage hides only what follows it, memory is bounded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from everywhen.guest import lookups
from everywhen.guest.errors import GuestDamaged
from everywhen.guest.lookups import Lookups
from everywhen.guest.tree import Entry, Kind


def folder(number: int) -> Entry:
    return Entry(name="x", kind=Kind.FOLDER, number=number, size=0)


class Folders:
    """Folder n has n names; 13 is damaged behind its second one, 0 from its begin on."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def listing(self, entry: Entry) -> Iterator[tuple[tuple[str, ...], int]]:
        self.read.append(entry.number)
        for number in range(entry.number):
            if entry.number == 13 and number == 2:
                raise GuestDamaged("13")
            yield (f"name {number}", "any"), number
        if not entry.number:
            raise GuestDamaged("0")


def test_the_first_key_that_is_there_and_the_first_entry_that_has_it() -> None:
    known = Lookups(Folders().listing)
    assert known.find(folder(5), "not there", "name 3", "name 4") == 3
    assert known.find(folder(5), "any") == 0
    assert known.find(folder(5), "name 5") is None


def test_damage_hides_only_what_follows_it() -> None:
    known = Lookups(Folders().listing)
    assert known.find(folder(13), "name 1") == 1
    assert known.find(folder(13), "name 2") is None
    with pytest.raises(GuestDamaged):
        known.find(folder(0), "name 0")


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "_MOST_NAMES", 100)
    folders = Folders()
    known = Lookups(folders.listing)
    for number in (50, 40, 50, 60, 50, 40, 200, 200):
        assert known.find(folder(number), f"name {number - 1}") == number - 1
    assert folders.read == [50, 40, 60, 50, 40, 200, 200]
