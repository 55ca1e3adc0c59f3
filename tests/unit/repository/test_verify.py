# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whatever is broken is found, with exactly what is lost by it (I-3); what is not broken is not accused (rule 4.9.6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from everywhen.block.device import BLOCK_SIZE
from everywhen.formats.ids import pack_of_object
from everywhen.repository import damage
from everywhen.repository.ingest import ChunkSink
from everywhen.repository.ledger import Ledger, Undone
from everywhen.repository.twins import twin_of
from everywhen.repository.verify.findings import Finding, Loss, Verdict
from everywhen.storage.base import Buffer, ObjectInfo, ObjectStore, ReadOnly
from everywhen.storage.forwarding import ForwardingStore
from tests import damage_recipes as broken
from tests.laboratory import block, shrink_packs
from tests.unit.repository.verify_lab import VM, BrokenLab


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BrokenLab:
    shrink_packs(monkeypatch, 8 << 10)
    return BrokenLab(tmp_path)


def only(verdict: Verdict) -> Finding:
    assert len(verdict.findings) == 1, verdict.findings
    return verdict.findings[0]


def all_losses(verdict: Verdict) -> list[Loss]:
    return sorted((loss for finding in verdict.findings for loss in finding.losses), key=repr)


@pytest.mark.parametrize("read_data", [False, True])
def test_nothing_is_found_where_nothing_is_wrong(lab: BrokenLab, *, read_data: bool) -> None:
    verdict = lab.verify(read_data=read_data)
    assert not verdict.findings
    assert not verdict.damaged
    assert not verdict.notes
    assert (verdict.points, verdict.leased, verdict.noted) == (4, True, True)
    packs = [found for prefix in ("packs/", "twins/packs/") for found in lab.store.list(prefix)]
    assert verdict.packs == len([found for found in packs if found.name.startswith("packs/")])
    assert not read_data or 0 < verdict.bytes_read < sum(found.size for found in packs)
    assert not list(lab.store.list("leases/"))


def test_a_bad_record_names_its_disk_points_and_bytes(lab: BrokenLab) -> None:
    place = lab.place(0, 300)  # in the first two points only
    broken.break_record(lab.store, place)
    assert not lab.verify().findings, "only reading the data can show it"
    finding = only(lab.verify(read_data=True))
    assert (finding.object, finding.offset, finding.chunks) == (place.pack, place.offset, [place.name])
    assert "tag wrong" in finding.why
    assert finding.losses == [lab.loss([(300, 301)], 0, 1)]
    assert finding.stands


def test_the_last_block_ends_where_the_disk_ends(lab: BrokenLab) -> None:
    broken.break_record(lab.store, lab.place(0, 599))
    assert only(lab.verify(read_data=True)).losses == [lab.loss([(599, 600)], 0, 1, 2)]


def test_what_was_noted_counts_in_the_next_quick_verify(lab: BrokenLab) -> None:
    place = lab.place(0, 300)
    broken.break_record(lab.store, place)
    lab.verify(read_data=True)
    finding = only(lab.verify())
    assert (finding.object, finding.offset, finding.known) == (place.pack, place.offset, True)
    assert finding.losses == [lab.loss([(300, 301)], 0, 1)]


def test_the_next_backup_of_the_same_content_heals(lab: BrokenLab) -> None:
    broken.break_record(lab.store, lab.place(0, 300))
    lab.verify(read_data=True)
    with lab.open() as repository:
        disk = lab.disk.copy()
        disk.blocks[10] = block(300)  # the lost content, elsewhere
        lab.world.back_up(repository, {"vda": disk}, parent=lab.points[-1], vm=VM)
    verdict = lab.verify(read_data=True)
    assert only(verdict).known
    assert only(verdict).losses == []
    assert "packs/" in only(verdict).spare
    assert not verdict.damaged
    with lab.open() as repository:
        lab.world.audit(repository, {point.point for point in lab.points})


def test_a_delta_is_lost_with_its_base(lab: BrokenLab) -> None:
    base, delta = lab.place(0, 3), lab.place(1, 3)
    broken.break_record(lab.store, base)
    finding = only(lab.verify(read_data=True))
    assert delta.length < base.length
    assert (finding.object, finding.offset) == (base.pack, base.offset)
    assert sorted(finding.losses, key=repr) == sorted([lab.loss([(3, 4)], 0, 1, 2)], key=repr)


def test_a_bad_frame_is_found(lab: BrokenLab) -> None:
    broken.break_frame(lab.store, lab.place(0, 4))
    assert only(lab.verify(read_data=True)).losses == [lab.loss([(4, 5)], 0, 1, 2)]


def test_content_that_is_not_what_its_name_says(lab: BrokenLab) -> None:
    place = lab.place(2, 300)
    with lab.open() as repository:
        wrong = repository.codec.encode_full(place.name, block("something else"))
        broken.remove(lab.store, place.pack)
        sink = ChunkSink(repository.writing(), lab.points[2].point)
        sink.put_copy(wrong, twinned=False, fingerprints=[])
        sink.finish()
    assert not lab.verify().findings, "only hashing can show it"
    finding = only(lab.verify(read_data=True))
    assert finding.why == "its content is not what its name says"
    assert finding.losses == [lab.loss([(300, 301)], 2)]


def test_a_missing_pack_costs_what_was_in_it(lab: BrokenLab) -> None:
    place = lab.place(2, 300)
    broken.remove(lab.store, place.pack)
    finding = only(lab.verify())
    assert (finding.invariant, finding.object, finding.why) == ("I-2", "packs/", "1 chunk that moments need is in no pack")
    assert finding.losses == [lab.loss([(300, 301)], 2)]


@pytest.mark.parametrize("recipe", [broken.break_header, broken.break_footer, broken.break_index])
def test_a_data_pack_with_one_bad_end_loses_nothing(lab: BrokenLab, recipe: broken.Recipe) -> None:
    pack = lab.place(0, 4).pack
    recipe(lab.store, pack)
    finding = only(lab.verify())
    assert (finding.object, finding.offset, finding.losses) == (pack, None, [])
    assert finding.stands
    assert not only(lab.verify(read_data=True)).losses


def test_a_pack_without_both_ends_is_lost(lab: BrokenLab) -> None:
    place = lab.place(2, 300)
    broken.break_header_and_footer(lab.store, place.pack)
    verdict = lab.verify()
    assert {finding.object for finding in verdict.findings} == {place.pack, "packs/"}
    assert all_losses(verdict) == [lab.loss([(300, 301)], 2)]


def test_a_machine_that_knew_the_pack_says_what_was_in_it(lab: BrokenLab) -> None:
    with lab.open() as repository:
        repository.refresh()
        place = lab.place(2, 300)
        broken.break_header_and_footer(lab.store, place.pack)
        finding = only(lab.verify(repository=repository))
    assert (finding.object, finding.losses) == (place.pack, [lab.loss([(300, 301)], 2)])
    with lab.open() as repository:
        pack = pack_of_object(place.pack)
        assert pack is not None
        assert damage.damaged_copies(repository.documents)[pack] == [place.offset]


def test_a_pack_cut_short_loses_what_was_behind(lab: BrokenLab) -> None:
    places = {number: lab.place(0, number) for number in (0, 3, 4, 5)}
    pack = places[0].pack
    inside = sorted((number for number in places if places[number].pack == pack), key=lambda n: places[n].offset)
    assert len(inside) >= 3, "the recipe needs a pack with several chunks"
    broken.cut_behind(lab.store, places[inside[0]])
    verdict = lab.verify()
    ranges = [part for loss in all_losses(verdict) for part in loss.ranges]
    lost = {number for start, end in ranges for number in range(start // BLOCK_SIZE, end // BLOCK_SIZE)}
    assert inside[0] not in lost
    assert set(inside[1:]) <= lost


class TestTwins:
    @pytest.mark.parametrize("twin", [False, True])
    @pytest.mark.parametrize("harm", [broken.remove, lambda store, name: broken.flip(store, name, 60), broken.empty])
    def test_one_bad_copy_of_a_point_loses_nothing(self, lab: BrokenLab, harm: broken.Recipe, *, twin: bool) -> None:
        first = f"points/{lab.points[1].point}"
        name, spare = (twin_of(first), first) if twin else (first, twin_of(first))
        harm(lab.store, name)
        finding = only(lab.verify())
        assert (finding.object, finding.spare, finding.losses) == (name, spare, [])

    def test_two_bad_copies_of_a_point_are_a_lost_moment(self, lab: BrokenLab) -> None:
        for name in broken.both(f"points/{lab.points[1].point}"):
            broken.flip(lab.store, name, 60)
        finding = only(lab.verify())
        assert finding.object == f"points/{lab.points[1].point}"
        assert finding.losses == [Loss(VM, "moment", "", (), ((lab.points[1].point, 0),))]

    def test_a_cache_that_knows_the_point_does_not_hide_it(self, lab: BrokenLab) -> None:
        with lab.open() as repository:
            repository.points.list()
            for name in broken.both(f"points/{lab.points[1].point}"):
                broken.flip(lab.store, name, 60)
            assert only(lab.verify(repository=repository)).losses

    def test_a_point_that_vanished_is_missed_in_the_chain(self, lab: BrokenLab) -> None:
        for name in broken.both(f"points/{lab.points[1].point}"):
            broken.remove(lab.store, name)
        finding = only(lab.verify())
        assert (finding.invariant, finding.object) == ("I-4", f"points/{lab.points[1].point}")

    def test_a_point_that_was_dropped_is_not_missed(self, lab: BrokenLab) -> None:
        with lab.open() as repository:
            lab.world.drop(repository, lab.points[1])
            lab.world.clock.advance(1000)
            lab.world.collect(repository)
        assert not lab.verify(read_data=True).findings

    @pytest.mark.parametrize("name", ["everywhen", "keys"])
    def test_superblock_and_key_slots(self, lab: BrokenLab, name: str) -> None:
        whole = next(found.name for found in lab.store.list("keys/")) if name == "keys" else name
        broken.remove(lab.store, whole)
        finding = only(lab.verify())
        assert (finding.object, finding.spare) == (whole, twin_of(whole))

    def test_a_drop_that_cannot_be_read(self, lab: BrokenLab) -> None:
        with lab.open() as repository:
            drop = lab.world.drop(repository, lab.points[0], delay_s=1e6)
        for name in broken.both(f"drops/{drop.drop}"):
            broken.flip(lab.store, name, 60)
        assert only(lab.verify()).object == f"drops/{drop.drop}"

    @pytest.mark.parametrize("prefix", ["drops/", "undone/"])
    def test_a_decision_without_its_first_copy_is_written_again(self, lab: BrokenLab, prefix: str) -> None:
        with lab.open() as repository:
            drop = lab.world.drop(repository, lab.points[0])
            undone = Undone("0" * 16, drop.drop, drop.points, lab.world.clock(), "tester")
            Ledger(repository.documents).put_undone(undone)
        [name] = [found.name for found in lab.store.list(prefix)]
        broken.remove(lab.store, name)
        assert only(lab.verify()).object == name
        lab.repair()
        assert not lab.verify().findings
        assert lab.store.get(name) == lab.store.get(twin_of(name))

    def test_what_was_taken_back_is_live_and_no_drop_explains_its_loss(self, lab: BrokenLab) -> None:
        with lab.open() as repository:
            drop = lab.world.drop(repository, lab.points[0])
            lab.world.clock.advance(1000)
            for name in broken.both(f"points/{lab.points[0].point}"):
                lab.store.delete(name)
            assert not lab.verify(repository=repository).findings
        with lab.open() as repository:
            undone = Undone("0" * 16, drop.drop, drop.points, lab.world.clock(), "tester")
            Ledger(repository.documents).put_undone(undone)
        assert only(lab.verify()).object == f"points/{lab.points[0].point}"

    def test_a_meta_pack_with_one_bad_copy_loses_nothing(self, lab: BrokenLab) -> None:
        node = lab.node(2, 0, 1)
        broken.break_record(lab.store, node)
        finding = only(lab.verify(read_data=True))
        assert (finding.object, finding.offset, finding.spare) == (node.pack, node.offset, twin_of(node.pack))
        assert not finding.losses

    @pytest.mark.parametrize("twin", [False, True])
    def test_a_meta_pack_without_one_copy_loses_nothing(self, lab: BrokenLab, *, twin: bool) -> None:
        pack = lab.node(2, 0, 1).pack
        gone, spare = (twin_of(pack), pack) if twin else (pack, twin_of(pack))
        broken.remove(lab.store, gone)
        finding = only(lab.verify(read_data=True))
        assert (finding.object, finding.why, finding.spare, finding.losses) == (gone, "missing", spare, [])

    @pytest.mark.parametrize("read_data", [False, True])
    def test_a_node_with_two_bad_copies_takes_its_range(self, lab: BrokenLab, *, read_data: bool) -> None:
        node = lab.node(2, 0, 1)  # blocks 256 to 511, changed in the third point
        for name in broken.both(node.pack):
            broken.flip(lab.store, name, node.offset + 60)
        losses = all_losses(lab.verify(read_data=read_data))
        assert losses == [lab.loss([(256, 512)], 2)]

    def test_a_root_with_two_bad_copies_takes_the_disk(self, lab: BrokenLab) -> None:
        node = lab.node(1, 1, 0)
        for name in broken.both(node.pack):
            broken.flip(lab.store, name, node.offset + 60)
        assert all_losses(lab.verify()) == [lab.loss([(0, 600)], 1)]


def test_what_no_moment_needs_is_damaged_without_loss(lab: BrokenLab) -> None:
    place = lab.place(0, 300)
    broken.break_record(lab.store, place)
    with lab.open() as repository:
        lab.world.drop(repository, lab.points[0], lab.points[1])
    finding = only(lab.verify(read_data=True))
    assert (finding.offset, finding.losses, finding.spare) == (place.offset, [], "")
    assert finding.stands
    assert not lab.verify(read_data=True).damaged, "noted: it goes with the next gc"


def test_a_note_about_a_record_that_is_whole_is_taken_back(lab: BrokenLab) -> None:
    place = lab.place(0, 300)
    content = lab.store.get(place.pack)
    broken.break_record(lab.store, place)
    lab.verify(read_data=True)
    lab.store.put(place.pack, [content])
    assert lab.verify(read_data=False).damaged
    assert not lab.verify(read_data=True).findings
    assert not lab.verify().findings


def test_a_damage_note_that_cannot_be_read_is_found(lab: BrokenLab) -> None:
    broken.break_record(lab.store, lab.place(0, 300))
    lab.verify(read_data=True)
    note = next(found.name for found in lab.store.list("damage/"))
    broken.flip(lab.store, note, 60)
    finding = next(finding for finding in lab.verify(read_data=True).findings if finding.object == note)
    assert finding.stands


def test_a_parent_that_was_replaced_is_found(lab: BrokenLab) -> None:
    with lab.open() as repository:
        forged = lab.points[0].to_json() | {"mark": "never set"}
        repository.documents.put(f"points/{lab.points[0].point}", forged)
    finding = only(lab.verify())
    assert (finding.invariant, finding.object) == ("I-4", f"points/{lab.points[1].point}")


class CannotWrite(ForwardingStore):
    """A medium that can only be read."""

    def put(self, name: str, parts: Sequence[Buffer], *, if_absent: bool = False) -> None:
        del parts, if_absent
        raise ReadOnly(name, "read-only")

    def delete(self, name: str) -> None:
        raise ReadOnly(name, "read-only")


def test_a_medium_that_cannot_be_written(lab: BrokenLab) -> None:
    broken.break_record(lab.store, lab.place(0, 300))
    with lab.world.open(CannotWrite(lab.store), lab.unlocked) as repository:
        verdict = lab.verify(read_data=True, repository=repository)
    assert only(verdict).losses == [lab.loss([(300, 301)], 0, 1)]
    assert (verdict.leased, verdict.noted) == (False, False)


class Meanwhile(ForwardingStore):
    """Does something once, right after an object whose name begins with `prefix` was read or listed."""

    def __init__(self, inner: ObjectStore, prefix: str, event: Callable[[], object]) -> None:
        super().__init__(inner)
        self.prefix, self.event, self.happened = prefix, event, False

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        found = list(self.inner.list(prefix))
        self._happen(prefix)
        return iter(found)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        found = self.inner.get_range(name, offset, length)
        self._happen(name)
        return found

    def _happen(self, name: str) -> None:
        if not self.happened and name.startswith(self.prefix):
            self.happened = True
            self.event()


@pytest.mark.parametrize("prefix", ["points/", "drops/", "packs/", "twins/packs/", "packs/0"])
@pytest.mark.parametrize("event", ["backup", "prune and gc"])
def test_what_others_do_meanwhile_is_no_damage(lab: BrokenLab, prefix: str, event: str) -> None:
    def happen() -> None:
        with lab.open() as repository:
            if event == "backup":
                disk = lab.disk.copy()
                disk.blocks[100] = block("meanwhile")
                lab.world.back_up(repository, {"vda": disk}, parent=lab.points[-1], vm=VM)
            else:
                lab.world.drop(repository, lab.points[0], lab.points[1])
                lab.world.clock.advance(1000)
                lab.world.collect(repository)

    store = Meanwhile(lab.store, prefix, happen)
    with lab.world.open(store, lab.unlocked) as repository:
        assert not lab.verify(read_data=True, repository=repository).findings
    assert store.happened or prefix == "packs/0"
    assert not lab.verify(read_data=True).findings


@pytest.mark.parametrize("kind", ["points", "packs"])
def test_a_second_copy_that_is_just_being_written(lab: BrokenLab, kind: str) -> None:
    name = f"points/{lab.points[0].point}" if kind == "points" else lab.node(2, 0, 1).pack
    content = lab.store.get(name)
    broken.remove(lab.store, twin_of(name))
    # Packs are looked at after points; a pack is read after all were listed.
    after = "packs/" if kind == "points" else name
    store = Meanwhile(lab.store, after, lambda: lab.store.put(twin_of(name), [content]))
    with lab.world.open(store, lab.unlocked) as repository:
        findings = lab.verify(repository=repository).findings
    assert store.happened
    assert not findings


def test_a_second_copy_whose_writer_is_at_work(lab: BrokenLab) -> None:
    node = lab.node(2, 0, 1)
    broken.remove(lab.store, twin_of(node.pack))
    with lab.open() as repository:
        session = repository.attend(f"sessions/{lab.points[2].point}", "backup", [])
        session.begin()
        verdict = lab.verify()
        session.end()
    assert not verdict.findings
    assert verdict.notes == [f"{twin_of(node.pack)} is not there yet: its writer is at work"]
    assert lab.verify().damaged
