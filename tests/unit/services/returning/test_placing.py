# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where disks go: pools that make block devices, and room (what a live libvirt shows: test_libvirt_defined_where_cli.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from everywhen.hypervisor.host import Pool
from everywhen.services.failures import NoSpace, NotFound, WrongUsage
from everywhen.services.returning.disk_xml import DefinedDisk, DeviceSource
from everywhen.services.returning.placing import NoPlace, Places, Wanted
from everywhen.services.returning.room import room
from everywhen.services.returning.wishes import As, State, Wishes, demand, failed, parse_storage, warned

GIB = 1 << 30
VG = Pool("vg", "logical", "/dev/vg0", 3 * GIB, active=True)
POOLS = [VG, Pool("ceph", "rbd", "", GIB, active=True), Pool("asleep", "dir", "/pools/b", 0, active=False)]
DISK = Wanted("vda", GIB, GIB >> 2)


def on_lvm(name: str = "web1") -> DefinedDisk:
    return DefinedDisk("vda", "block", f"/dev/vg0/{name}", "raw", None, is_medium=False, readonly=False)


def test_a_pool_of_volumes_makes_a_block_device() -> None:
    (asked,) = [Places("web1", Wishes(storage={"": "vg"}, image_format="qcow2"), POOLS).place(DISK, None)]
    assert (asked.path, asked.format, asked.pool, asked.volume) == ("/dev/vg0/web1-vda", "raw", "vg", "web1-vda")
    assert asked.source == DeviceSource("/dev/vg0/web1-vda")
    assert Places("web1", Wishes(), POOLS).place(DISK, on_lvm()).volume == "web1", "where it was"
    assert Places("web2", Wishes(As.new), POOLS).place(DISK, on_lvm()).volume == "web2-vda", "beside that"


@pytest.mark.parametrize(
    ("wishes", "defined", "words"),
    [
        (Wishes(storage={"vda": "ceph"}), None, "of the kind rbd"),
        (Wishes(storage={"vda": "asleep"}), None, '"asleep" is not active'),
        (Wishes(), None, "was in no definition"),
        (Wishes(), DefinedDisk("vda", "network", "", "raw", None, is_medium=False, readonly=False), "was on network"),
        (Wishes(), DefinedDisk("vda", "block", "/dev/sdz9", "raw", None, is_medium=False, readonly=False), "in no pool"),
        (
            Wishes(),
            DefinedDisk("vda", "volume", "", "raw", ("vg", "a/b"), is_medium=False, readonly=False),
            "no name of a volume",
        ),
        (Wishes(), DefinedDisk("vda", "volume", "", "raw", ("gone", "a"), is_medium=False, readonly=False), 'no pool "gone"'),
    ],
)
def test_a_disk_without_a_place(wishes: Wishes, defined: DefinedDisk | None, words: str) -> None:
    with pytest.raises(NoPlace) as caught:
        Places("web1", wishes, POOLS).place(DISK, defined)
    assert words in caught.value.check.what
    assert caught.value.check.state is State.failed
    assert caught.value.check.do, "no way out"


def test_a_volume_in_a_folder_has_its_name(tmp_path: Path) -> None:
    pool = Pool("ssd", "dir", str(tmp_path), GIB, active=True)
    defined = DefinedDisk("vda", "volume", "", "qcow2", ("ssd", "web.img"), is_medium=False, readonly=False)
    assert Places("web1", Wishes(), [pool]).place(DISK, defined).path == str(tmp_path / "web.img")
    (tmp_path / "web.img").touch()
    with pytest.raises(NoPlace):
        Places("web1", Wishes(), [pool]).place(DISK, defined)
    # One that is empty, and was begun by an earlier run of ours, is no obstacle.
    assert Places("web1", Wishes(), [pool], (), {str(tmp_path / "web.img")}).place(DISK, defined).path == str(
        tmp_path / "web.img"
    )


def test_room_is_counted_for_all_disks_together(tmp_path: Path) -> None:
    places = Places("web1", Wishes(storage={"": "vg"}), POOLS)
    two = [places.place(Wanted(name, 2 * GIB, 0), None) for name in ("vda", "vdb")]
    (enough,) = room(two[:1], POOLS)
    assert enough.state is State.passed
    (lacking,) = room(two, POOLS)
    assert (lacking.state, lacking.kind) == (State.failed, NoSpace), "a volume takes all of its size at once"
    assert 'the pool "vg"' in lacking.what
    thin = Places("web1", Wishes(storage={"": f"{tmp_path}/"}), POOLS).place(Wanted("vda", 1 << 60, 4096), None)
    assert room([thin], POOLS)[0].state is State.warned


def test_where_disks_are_asked_to_go() -> None:
    disks = {"vda": 0, "vdb": 0}
    assert parse_storage(["vda=ssd", "/images/"], disks) == {"vda": "ssd", "": "/images/"}
    assert parse_storage(["/odd=path/a"], disks) == {"": "/odd=path/a"}
    for words in (["vdc=ssd"], ["vda="], ["vda=a", "vda=b"], ["a", "b"]):
        with pytest.raises(WrongUsage):
            parse_storage(words, disks)


def test_all_that_failed_is_said() -> None:
    demand([warned("a")], "web1", "")
    with pytest.raises(NotFound, match="one"):
        demand([failed("one", "way", kind=NotFound), warned("a")], "web1", "safe")
    with pytest.raises(NotFound, match="2 things") as caught:
        demand([failed("one", "way", kind=NotFound), failed("one", "way"), failed("two", kind=NotFound)], "web1", "safe")
    assert caught.value.do == ["1. one", "   way", "2. two"]
