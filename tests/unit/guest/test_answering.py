# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the process that parses keeps between two questions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from everywhen.guest.questions import Answering
from everywhen.guest.tree import Entry, Unreadable
from everywhen.guest.values import entry_json
from tests.memory_tree import MemoryFileSystem

NAMES = 2000


class Counted(MemoryFileSystem):
    """How many entries were looked at."""

    looked = 0

    def entries(self, folder: Entry) -> Iterator[Entry | Unreadable]:
        for one in super().entries(folder):
            self.looked += 1
            yield one


def test_several_who_list_one_folder_at_once_cost_no_more_than_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Step by step, as threads do that take turns: each begins once, and none takes the place of another one."""
    system = Counted()
    for number in range(NAMES):
        system.add(f"/{number}")
    answering = Answering({})
    monkeypatch.setattr(answering, "_system", lambda _question: system)
    found, more = 0, True
    while more:
        question = {"ask": "entries", "disk": "vda", "volume": "p1", "entry": entry_json(system.root), "from": found}
        answers = [answering._entries(question).head for _ in range(5)]
        counts, mores = {len(one["entries"]) for one in answers}, {one["more"] for one in answers}
        (count,), (more,) = counts, mores
        found += count
    assert found == NAMES
    assert system.looked == 5 * NAMES
