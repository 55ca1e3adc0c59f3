# SPDX-License-Identifier: AGPL-3.0-or-later
"""What gc condemned stays condemned though one copy of the document is damaged, lost, late or left over (rule 4.9.6)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from everywhen.formats.ids import PackId, pack_object, pack_of_object
from everywhen.repository.condemned import Condemnation, list_condemned, publish
from everywhen.repository.errors import Busy, Damaged
from everywhen.repository.gc.gc import collect
from everywhen.repository.gc.only_one import LOCK, only_one
from everywhen.repository.reading import opened_points
from everywhen.repository.twins import twin_of
from everywhen.repository.verify.findings import Remedy
from everywhen.repository.verify.repair_sources import DeviceSource
from everywhen.storage.base import ObjectStore
from tests import damage_recipes as broken
from tests.laboratory import SparseDisk, block, shrink_packs, truth_of
from tests.unit.repository.verify_lab import BrokenLab

NAME = "condemned/gc-1"


class Condemned(BrokenLab):
    """The lab, where all packs were condemned by a gc that went no further."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        names = (found.name for found in self.store.list("packs/"))
        self.packs: set[PackId] = {pack for name in names if (pack := pack_of_object(name))}
        with self.open() as repository:
            publish(repository.documents, Condemnation("gc-1", frozenset(self.packs), frozenset(), self.world.clock()))

    def named(self) -> set[PackId]:
        with self.open() as repository:
            return {pack for one in list_condemned(repository.documents) for pack in one.packs}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Condemned:
    shrink_packs(monkeypatch, 8 << 10)
    return Condemned(tmp_path)


HARM: dict[str, Callable[[ObjectStore], None]] = {
    "nothing": lambda store: None,
    "one bit": lambda store: broken.flip(store, NAME, 60),
    "first copy": lambda store: store.delete(NAME),
    "bit of the twin": lambda store: broken.flip(store, twin_of(NAME), 60),
    "twin": lambda store: store.delete(twin_of(NAME)),
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_backups_and_gc_go_on_and_what_is_condemned_stays_so(lab: Condemned, harm: Callable[[ObjectStore], None]) -> None:
    harm(lab.store)
    assert lab.named() == lab.packs
    with lab.open() as repository:
        repository.refresh()
        new = lab.world.back_up(repository, {"vda": SparseDisk(1 << 20, {1: block(3), 2: block("new")})})
    with lab.open() as repository:
        lab.world.collect(repository)
        there = {found.name for found in lab.store.list()}
        assert not there & {pack_object(pack) for pack in lab.packs}
        assert not there & {NAME, twin_of(NAME)}
        lab.world.audit(repository, {point.point for point in (*lab.points, lab.other, new)})
    assert not lab.verify(read_data=True).findings


@pytest.mark.parametrize("harm", list(HARM.values())[1:], ids=list(HARM)[1:])
def test_verify_finds_the_bad_copy_and_repairs_it(lab: Condemned, harm: Callable[[ObjectStore], None]) -> None:
    whole = lab.store.get(NAME)
    harm(lab.store)
    [finding] = lab.verify().findings
    assert {finding.object, finding.spare} == {NAME, twin_of(NAME)}
    assert not finding.losses
    lab.repair()
    assert not lab.verify().findings
    assert lab.store.get(NAME) == lab.store.get(twin_of(NAME)) == whole


def test_when_both_copies_are_bad_who_writes_or_deletes_stops_and_who_reads_goes_on(lab: Condemned) -> None:
    lose(lab)
    before = {found.name for found in lab.store.list("packs/")}
    [finding] = lab.verify().findings
    assert (finding.object, finding.spare, finding.remedy) == (NAME, "", Remedy.GIVE_UP)
    with lab.open() as repository:
        with pytest.raises(Damaged, match=f"{NAME} cannot be read: .*nothing was done"):
            lab.world.back_up(repository, {"vda": SparseDisk(1 << 20, {1: block("new")})})
        with pytest.raises(Damaged, match="nothing was done"):
            lab.world.collect(repository)
        with opened_points(repository, "restore", [lab.other]):
            assert truth_of(repository, lab.other) == lab.world.truths[lab.other.point]
    lab.repair()
    assert lab.verify().damaged
    assert {found.name for found in lab.store.list("packs/")} == before


def test_given_up_what_was_condemned_is_in_use_again(lab: Condemned) -> None:
    lose(lab)
    lab.repair(give_up=[NAME])
    assert not lab.verify(read_data=True).findings
    with lab.open() as repository:
        new = lab.world.back_up(repository, {"vda": SparseDisk(1 << 20, {1: block(3), 2: block("new")})})
        lab.world.collect(repository)
        lab.world.audit(repository, {point.point for point in (*lab.points, lab.other, new)}, twins=True)


def test_given_up_before_what_is_lost_is_stored_anew(lab: Condemned) -> None:
    """A repair is a writer, too: what stops it is out of its way first."""
    lose(lab)
    pack = max(lab.store.list("packs/"), key=lambda found: found.size).name
    for name in {pack, twin_of(pack)} & {found.name for found in lab.store.list()}:
        lab.store.delete(name)
    assert lab.verify().damaged
    with lab.open() as repository:
        source = DeviceSource("disk", lab.disk, repository.codec)
    lab.repair(source, give_up=[NAME])
    assert not lab.verify(read_data=True).damaged


def test_nothing_is_given_up_beside_a_gc(lab: Condemned) -> None:
    """It may know what the document said, and go on."""
    lose(lab)
    with lab.open() as repository, only_one(repository, dry_run=True), pytest.raises(Busy, match="gc is running"):
        lab.repair(give_up=[NAME])
    assert lab.store.get(NAME)


@pytest.mark.parametrize("when", ["waiting", "finding", "copying"])
def test_a_gc_that_stood_still_deletes_nothing_of_what_was_given_up_meanwhile(lab: Condemned, when: str) -> None:
    """Others use it again."""
    before = {found.name for found in lab.store.list("packs/")}
    done: list[str] = []

    def give_up(step: str) -> None:
        if step.startswith(when) and not done:
            done.append(step)
            lose(lab)
            lab.store.delete(LOCK)  # it was silent for so long that it was taken for dead
            lab.repair(give_up=[NAME])

    with lab.open() as writer, lab.open() as collector:
        session = writer.attend(f"sessions/p-{'0' * 12}", "backup", [])
        session.begin()
        waited: list[float] = []

        def pause(seconds: float) -> None:
            waited.append(seconds)
            give_up("waiting")
            session.end()

        def note(step: str, _done: int, _total: int | None) -> None:
            if waited:
                give_up(step)

        collect(collector, wait=True, dry_run=False, note=note, pause=pause)
    assert done
    assert before <= {found.name for found in lab.store.list("packs/")}
    assert not lab.verify(read_data=True).findings


def lose(lab: Condemned) -> None:
    """Both copies."""
    for name in broken.both(NAME):
        broken.flip(lab.store, name, 60)


@pytest.mark.parametrize("name", [NAME, twin_of(NAME)])
def test_a_copy_that_turns_up_when_all_is_over_does_no_harm(lab: Condemned, name: str) -> None:
    """Its writer was held up while another gc took over and ended; or a repair put it again at the wrong moment."""
    whole = lab.store.get(name)
    with lab.open() as repository:
        lab.world.collect(repository)
        lab.store.put(name, [whole])
        new = lab.world.back_up(repository, {"vda": SparseDisk(1 << 20, {1: block(3), 2: block("new")})})
        lab.world.audit(repository, {point.point for point in (*lab.points, lab.other, new)})
        lab.world.collect(repository)
        lab.world.audit(repository, {point.point for point in (*lab.points, lab.other, new)})
    assert not {NAME, twin_of(NAME)} & {found.name for found in lab.store.list()}
    assert not lab.verify(read_data=True).findings
