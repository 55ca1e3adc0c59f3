# SPDX-License-Identifier: AGPL-3.0-or-later
"""gc and a pack that it cannot empty: it stays, whatever was published about it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from everywhen.formats.ids import pack_of_object
from everywhen.repository import packs
from everywhen.repository.condemned import Condemnation, publish
from everywhen.repository.gc import gc
from tests import damage_recipes
from tests.unit.repository.verify_lab import BrokenLab


def test_a_condemned_pack_whose_index_is_gone_is_not_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "PACK_SIZE", 8 << 10)
    monkeypatch.setattr(gc, "_SMALL_PACK", 1 << 10)
    lab = BrokenLab(tmp_path)
    places = sorted((lab.place(0, block) for block in (0, 3, 4, 5, 300)), key=lambda place: (place.pack, place.offset))
    pack, _ = Counter(place.pack for place in places).most_common(1)[0]
    first = next(place for place in places if place.pack == pack)
    with lab.world.open(lab.store, lab.unlocked, cache="warm") as repository:
        repository.refresh()
        # The index that is remembered has one row more than what a scan of the damaged pack finds.
        damage_recipes.break_frame(lab.store, first)
        damage_recipes.break_footer(lab.store, pack)
        condemned = pack_of_object(pack)
        assert condemned is not None
        publish(repository.documents, Condemnation("run", frozenset({condemned}), frozenset(), lab.world.clock()))
        collected = lab.world.collect(repository)
    assert any(pack in text for text in collected.damaged)
    assert pack in {found.name for found in lab.store.list("packs/")}
