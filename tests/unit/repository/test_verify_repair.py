# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is repaired is as it was, and what cannot be repaired is said (rule 4.9.6)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from everywhen.block.device import BLOCK_SIZE
from everywhen.formats.ids import ChunkName
from everywhen.repository.condemned import list_condemned
from everywhen.repository.errors import Damaged
from everywhen.repository.reading import opened_points
from everywhen.repository.repository import Repository
from everywhen.repository.twins import twin_of
from everywhen.repository.verify.repair_sources import DeviceSource, RepositorySource
from everywhen.storage.posix import PosixStore
from tests import damage_recipes as broken
from tests.laboratory import SparseDisk, block, shrink_packs, truth_of
from tests.unit.repository.verify_lab import SIZE, BrokenLab


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BrokenLab:
    shrink_packs(monkeypatch, 8 << 10)
    return BrokenLab(tmp_path)


@pytest.fixture
def copy(lab: BrokenLab, tmp_path: Path) -> Iterator[Repository]:
    """A copy of the repository, made while it was whole."""
    shutil.copytree(tmp_path / "repository", tmp_path / "copy")
    with lab.world.open(PosixStore(str(tmp_path / "copy")), lab.unlocked) as opened:
        opened.refresh()
        yield opened


class TestFromTheRepositoryAlone:
    @pytest.mark.parametrize(
        ("prefix", "harm", "twin"),
        [
            ("points/", broken.remove, False),
            ("points/", broken.empty, True),
            ("keys/", broken.remove, True),
            ("keys/", lambda store, name: broken.flip(store, name, 60), False),
            ("everywhen", broken.empty, False),
            ("everywhen", broken.remove, True),
        ],
    )
    def test_a_second_copy_is_written_again(self, lab: BrokenLab, prefix: str, harm: broken.Recipe, twin: bool) -> None:
        before = lab.contents()
        first = next(name for name in before if name.startswith(prefix))
        harm(lab.store, twin_of(first) if twin else first)
        verdict, repaired = lab.repair()
        assert not verdict.damaged
        assert repaired.objects == 1
        assert lab.contents() == before

    @pytest.mark.parametrize(
        "recipe",
        [
            broken.break_header,
            broken.break_footer,
            broken.break_index,
            broken.break_header_and_footer,
            broken.remove,
            broken.empty,
        ],
    )
    def test_a_meta_pack_is_as_it_was(self, lab: BrokenLab, recipe: broken.Recipe) -> None:
        before = lab.contents()
        pack = lab.node(2, 0, 1).pack
        recipe(lab.store, pack if recipe in (broken.remove, broken.break_index) else twin_of(pack))
        verdict, _ = lab.repair(read_data=True)
        assert not verdict.damaged
        assert lab.contents() == before
        assert not lab.verify(read_data=True).findings

    def test_two_half_broken_copies_make_a_whole_one(self, lab: BrokenLab) -> None:
        before = lab.contents()
        node = lab.node(2, 0, 1)
        broken.break_record(lab.store, node)
        broken.break_header(lab.store, node.pack)
        broken.break_index(lab.store, twin_of(node.pack))
        verdict, _ = lab.repair(read_data=True)
        assert not verdict.damaged
        assert lab.contents() == before

    @pytest.mark.parametrize("recipe", [broken.break_header, broken.break_footer])
    def test_a_data_pack_with_one_bad_end_is_as_it_was(self, lab: BrokenLab, recipe: broken.Recipe) -> None:
        before = lab.contents()
        recipe(lab.store, lab.place(0, 4).pack)
        verdict, _ = lab.repair()
        assert not verdict.damaged
        assert lab.contents() == before

    def test_a_bad_frame_follows_from_the_index(self, lab: BrokenLab) -> None:
        before = lab.contents()
        broken.break_frame(lab.store, lab.place(0, 4))
        verdict, _ = lab.repair(read_data=True)
        assert not verdict.damaged
        assert lab.contents() == before
        assert not list(lab.store.list("damage/"))

    def test_a_bad_frame_that_was_noted_is_mended_without_reading_all(self, lab: BrokenLab) -> None:
        before = lab.contents()
        broken.break_frame(lab.store, lab.place(0, 4))
        lab.verify(read_data=True)
        verdict, _ = lab.repair()
        assert not verdict.damaged
        assert lab.contents() == before
        assert not list(lab.store.list("damage/"))

    def test_a_pack_without_an_index_is_emptied_and_condemned(self, lab: BrokenLab) -> None:
        place = lab.place(0, 4)
        broken.break_index(lab.store, place.pack)
        verdict, _ = lab.repair()
        assert not verdict.damaged
        with lab.open() as repository:
            [condemnation] = list_condemned(repository.documents)
            assert {pack.hex() for pack in condemnation.packs} == {place.pack.rpartition("/")[2]}
            lab.world.collect(repository)
        assert place.pack not in lab.contents()
        lab.audit()
        assert not lab.verify(read_data=True).findings

    def test_a_note_that_cannot_be_read_goes(self, lab: BrokenLab) -> None:
        broken.break_record(lab.store, lab.place(0, 300))
        lab.verify(read_data=True)
        note = next(found.name for found in lab.store.list("damage/"))
        broken.flip(lab.store, note, 60)
        with lab.open() as repository:
            with opened_points(repository, "restore", [lab.other]):
                assert truth_of(repository, lab.other) == lab.world.truths[lab.other.point]
            with pytest.raises(Damaged, match=f"{note} cannot be read: .*nothing was done"):
                lab.world.back_up(repository, {"vda": lab.disk})
        lab.repair()
        assert not [found for found in lab.store.list("damage/") if found.name == note]

    def test_what_cannot_be_repaired_is_still_damaged(self, lab: BrokenLab) -> None:
        broken.break_record(lab.store, lab.place(0, 300))
        verdict, repaired = lab.repair(read_data=True)
        assert verdict.damaged
        assert [loss for finding in verdict.findings for loss in finding.losses] == [lab.loss([(300, 301)], 0, 1)]
        assert (repaired.objects, repaired.chunks) == (0, {})

    def test_nothing_is_left_of_the_session(self, lab: BrokenLab) -> None:
        broken.break_index(lab.store, lab.place(0, 4).pack)
        lab.repair()
        assert not list(lab.store.list("sessions/"))
        assert not list(lab.store.list("leases/"))


def break_much(lab: BrokenLab) -> None:
    """A bad record, a missing pack, a pack that nobody can open, a node and a root without a good copy."""
    whole, node, root = lab.place(2, 300), lab.node(2, 0, 1), lab.node(1, 1, 0)
    broken.break_record(lab.store, lab.place(0, 300))
    broken.remove(lab.store, whole.pack)
    broken.break_header_and_footer(lab.store, lab.place(0, 4).pack)
    for place in (node, root):
        for name in broken.both(place.pack):
            broken.flip(lab.store, name, place.offset + 60)


class TestFromACopy:
    @pytest.mark.parametrize("read_data", [False, True])
    def test_everything_comes_back(self, lab: BrokenLab, copy: Repository, *, read_data: bool) -> None:
        break_much(lab)
        if not read_data:
            assert lab.verify(read_data=True).damaged  # a quick verify knows of a bad record by the note of a thorough one
        verdict, repaired = lab.repair(RepositorySource("copy", copy.fetcher), read_data=read_data)
        assert not [finding for finding in verdict.findings if finding.stands]
        assert repaired.chunks["copy"] >= 4
        lab.read_all()
        with lab.open() as repository:
            lab.world.collect(repository)
        lab.audit()

    @pytest.mark.parametrize("harm", ["cut", "both indexes of a meta pack", "both copies of a meta pack"])
    def test_a_pack_without_an_index_is_emptied_and_filled_up(self, lab: BrokenLab, copy: Repository, harm: str) -> None:
        if harm == "cut":
            broken.cut_behind(lab.store, min((lab.place(0, number) for number in (0, 3, 4, 5)), key=lambda p: p.offset))
        for name in broken.both(lab.node(2, 0, 1).pack) if harm != "cut" else ():
            (broken.break_index if "indexes" in harm else broken.empty)(lab.store, name)
        verdict, _ = lab.repair(RepositorySource("copy", copy.fetcher), read_data=True)
        assert not verdict.damaged
        lab.read_all()
        with lab.open() as repository:
            lab.world.collect(repository)
        lab.audit()
        assert not lab.verify(read_data=True).damaged

    def test_what_was_repaired_stays_repaired(self, lab: BrokenLab, copy: Repository) -> None:
        break_much(lab)
        lab.repair(RepositorySource("copy", copy.fetcher), read_data=True)
        verdict = lab.verify(read_data=True)
        assert not verdict.damaged
        assert not [loss for finding in verdict.findings for loss in finding.losses]

    def test_a_base_comes_back(self, lab: BrokenLab, copy: Repository) -> None:
        broken.break_record(lab.store, lab.place(0, 3))
        verdict, _ = lab.repair(RepositorySource("copy", copy.fetcher), read_data=True)
        assert not verdict.damaged
        lab.audit()

    def test_a_source_that_lies_is_not_believed(self, lab: BrokenLab) -> None:
        class Liar:
            name = "liar"

            def find(self, wanted: Mapping[bytes, bool]) -> Iterator[tuple[bytes, bytes]]:
                for name in wanted:
                    yield name, block("something else")

        broken.break_record(lab.store, lab.place(0, 300))
        packs = [found.name for found in lab.store.list("packs/")]
        verdict, repaired = lab.repair(Liar(), read_data=True)
        assert verdict.damaged
        assert repaired.chunks == {}
        assert [found.name for found in lab.store.list("packs/")] == packs


class TestFromADisk:
    def source(self, lab: BrokenLab, disk: SparseDisk) -> DeviceSource:
        with lab.open() as repository:
            return DeviceSource("disk", disk, repository.codec)

    def test_blocks_and_nodes_of_the_newest_moment_come_back(self, lab: BrokenLab) -> None:
        whole, node, root = lab.place(2, 300), lab.node(2, 0, 1), lab.node(2, 1, 0)
        broken.remove(lab.store, whole.pack)
        for place in (node, root):
            for name in broken.both(place.pack):
                broken.flip(lab.store, name, place.offset + 60)
        verdict, repaired = lab.repair(self.source(lab, lab.disk))
        assert not verdict.damaged
        assert repaired.chunks == {"disk": 3}
        with lab.open() as repository:
            lab.world.audit(repository, {point.point for point in lab.points})

    def test_the_padded_last_block_comes_back(self, lab: BrokenLab) -> None:
        broken.break_record(lab.store, lab.place(0, 599))
        verdict, _ = lab.repair(self.source(lab, lab.disk), read_data=True)
        assert not verdict.damaged
        lab.audit()

    def test_a_block_is_found_wherever_it_is_now(self, lab: BrokenLab) -> None:
        broken.break_record(lab.store, lab.place(0, 300))
        elsewhere = SparseDisk(10 * BLOCK_SIZE, {7: block(300)})
        verdict, _ = lab.repair(self.source(lab, elsewhere), read_data=True)
        assert not verdict.damaged
        lab.audit()

    def test_what_the_disk_has_not_stays_lost(self, lab: BrokenLab) -> None:
        broken.break_record(lab.store, lab.place(0, 300))  # overwritten in the third point
        broken.break_record(lab.store, lab.place(0, 5))
        verdict, repaired = lab.repair(self.source(lab, lab.disk), read_data=True)
        assert repaired.chunks == {"disk": 1}
        assert [loss for finding in verdict.findings for loss in finding.losses] == [lab.loss([(300, 301)], 0, 1)]
        assert [bool(finding.repaired) for finding in verdict.findings].count(True) == 1

    def test_the_nodes_are_those_of_a_backup(self, lab: BrokenLab) -> None:
        with lab.open() as repository:
            tree = lab.points[2].disks["vda"].tree
            block_map = repository.block_map(tree)
            names = {name for level in (0, 1) for _, name in block_map.nodes(level)}
            found = dict(DeviceSource("disk", lab.disk, repository.codec).find(dict.fromkeys(names, True)))
            assert found.keys() == names
            assert all(repository.fetcher.read(ChunkName(name)) == content for name, content in found.items())
        assert lab.disk.size == SIZE
