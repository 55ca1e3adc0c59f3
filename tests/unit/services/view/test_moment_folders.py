# SPDX-License-Identifier: AGPL-3.0-or-later
"""The tree of all moments: which names there are, what each leads to, and what is open meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC

import pytest

from everywhen.block.patched import Patches
from everywhen.formats.layouts.runs import Runs
from everywhen.formats.point import RecoveryPoint, RolledBack, Tree
from everywhen.formats.segment import Group, decode_group, encode_group
from everywhen.repository.ledger import Vm
from everywhen.repository.repository import Repository
from everywhen.repository.used_ranges import UsedRanges
from everywhen.repository.writer import parent_link, write_point
from everywhen.services.ages import SECOND
from everywhen.services.failures import NotFound, WrongUsage
from everywhen.services.identities import record
from everywhen.services.protect.sealing import Origin, SealedDisk, Sealer
from everywhen.services.replay import Replay
from everywhen.services.times import folder_time
from everywhen.services.view import folders as tree
from everywhen.services.view import held
from everywhen.services.view.folders import Folders
from everywhen.services.view.moment_folder import SHOWN_FORMATS
from everywhen.services.view.moments import OpenMoments
from everywhen.services.view.nodes import File, Folder, Link
from everywhen.storage.base import StorageError
from tests.records import COMPLETE, OPENED, put_segment, write

STREAM = "ab" * 16
VM = Vm("f" * 32, "web1", "web1", "", "", 0)
SIZE = 65536


def at(first: int, time_ns: int, *numbers: int) -> Group:
    """Writes of one byte to the beginning of the first disk, all of one instant."""
    records = [write(0, 0, bytes([number])) for number in numbers]
    rows = [(kind, disk, offset, len(data), 0) for kind, disk, offset, data in records]
    return decode_group(encode_group(first, time_ns, rows, [data for *_, data in records], 1))


def opening() -> Group:
    records = [*OPENED, *COMPLETE]
    rows = [(kind, disk, offset, len(data), 0) for kind, disk, offset, data in records]
    return decode_group(encode_group(0, 10 * SECOND, rows, [data for *_, data in records], 1))


GROUPS = [
    opening(),
    at(4, 20 * SECOND, 1, 2),
    at(6, 30 * SECOND, 3, 4),
    at(8, 40 * SECOND, 5),
    at(9, 40 * SECOND + 5, 6),
]
"""Points are made after the first, the third and each one that follows."""


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def points(repository: Repository) -> list[RecoveryPoint]:
    """Of a VM with two disks: points at 10 s, 30 s, 40 s and 40.000000005 s."""
    record(repository, VM)
    made: list[RecoveryPoint] = []
    with write_point(repository, "test", first_copy=True) as writer:
        disks = [SealedDisk("vda", SIZE, Tree(SIZE, None)), SealedDisk("vdb", SIZE, Tree(SIZE, None))]
        sealer = Sealer(repository, writer, disks, Replay([Patches(), Patches()], 0, following=False))
        sealer.feed(GROUPS[0])
        made.append(sealer.commit(None, Origin(VM.vm, 1, STREAM, {}), 0))
    for groups in (GROUPS[1:3], GROUPS[3:4], GROUPS[4:]):
        last = made[-1]
        assert last.journal is not None
        with write_point(repository, "test", first_copy=False) as writer:
            sealer = Sealer.after(repository, writer, last, last.journal)
            for one in groups:
                sealer.feed(one)
            made.append(sealer.commit(last, Origin(VM.vm, 1, STREAM, {}), 0))
    put_segment(repository, STREAM, 0, *GROUPS)
    return made


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folders(repository: Repository, points: list[RecoveryPoint], clock: Clock) -> Iterator[Folders]:
    moments = OpenMoments(repository, "mount", zone=UTC, monotonic=clock, linger_s=0, before=lambda _vm: None)
    made = Folders(repository, moments, zone=UTC, monotonic=clock, before=lambda _vm: None, say=print)
    yield made
    made.close()
    moments.close()


def first_byte(folders: Folders, path: str) -> int:
    node = folders.look_up(path)
    while isinstance(node, Link):
        path = f"{path.rpartition('/')[0]}/{node.target}"
        node = folders.look_up(path)
    file = folders.open(f"{path}/disk/vda.raw")
    try:
        return file.read(0, 1)[0]
    finally:
        file.close()


def target(folders: Folders, name: str) -> str:
    node = folders.look_up(f"web1/{name}")
    assert isinstance(node, Link), node
    return node.target


EXACT = "@1970-01-01_00.00.40.000000000Z"
LATER = "@1970-01-01_00.00.40.000000005Z"


def test_a_folder_for_each_point(folders: Folders, points: list[RecoveryPoint]) -> None:
    assert folders.names("") == ["web1"]
    assert [point.time_ns for point in points] == [10 * SECOND, 30 * SECOND, 40 * SECOND, 40 * SECOND + 5]
    listed = ["@1970-01-01_00.00.10Z", "@1970-01-01_00.00.30Z", EXACT, LATER]
    assert folders.names("/web1") == [*listed, "@latest"]
    for name, byte in zip(listed, (0, 4, 5, 6), strict=True):
        assert isinstance(folders.look_up(f"/web1/{name}"), Folder)
        assert folders.names(f"/web1/{name}") == ["disk", "files", "volumes", "notes.txt"]
        assert first_byte(folders, f"web1/{name}") == byte
    files = folders.names(f"/web1/{listed[0]}/disk")
    assert files == [f"{disk}.{form}" for disk in ("vda", "vdb") for form in ("raw", "qcow2", "vhd", "vhdx", "vmdk")]


def test_what_is_typed_leads_to_a_moment_s_own_name(folders: Folders, points: list[RecoveryPoint]) -> None:
    assert target(folders, "@latest") == LATER
    assert target(folders, f"@{points[1].point}") == "@1970-01-01_00.00.30Z"
    assert target(folders, "@1970-01-01_00.00.15") == "@1970-01-01_00.00.10Z"
    assert target(folders, "@1970-01-01_00.00.20") == "@1970-01-01_00.00.20.000000000Z"
    assert first_byte(folders, "web1/@1970-01-01_00.00.20.000000000Z") == 2
    assert target(folders, "@1970-01-01_00.00.40Z") == LATER, "of several of that second the last one"


def test_each_of_several_writes_of_one_instant_has_a_name(folders: Folders, points: list[RecoveryPoint]) -> None:
    assert target(folders, f"@{points[2].point}~1") == "@1970-01-01_00.00.30Z"
    assert target(folders, "@latest~2") == "@1970-01-01_00.00.30Z"
    third = target(folders, "@latest~3")
    assert third == f"@{points[3].point}~3", "the last one of that instant is a point"
    assert (first_byte(folders, f"web1/{third}"), folders.look_up(f"web1/{third}")) == (3, Folder(30 * SECOND))
    assert target(folders, "@latest~4") == "@1970-01-01_00.00.20.000000000Z"
    first = target(folders, "@1970-01-01_00.00.20~1")
    assert first == "@1970-01-01_00.00.20.000000000Z~1"
    assert (first_byte(folders, f"web1/{first}"), folders.look_up(f"web1/{first}")) == (1, Folder(20 * SECOND))


def test_what_is_not_there(folders: Folders) -> None:
    for path in (
        "web2",
        "web1/latest",
        "web1/@",
        "web1/@1969-01-01",
        "web1/@no such mark",
        "web1/@p-zzz",
        "web1/@latest/etc",
        "web1/@latest/disk/vdc.raw",
        "web1/@latest/disk/vda",
        "web1/@latest/disk/vda.vdi",
        "web1/@latest/disk/vda.raw/more",
    ):
        with pytest.raises((NotFound, WrongUsage)):
            folders.look_up(path)
    with pytest.raises(NotFound):
        folders.open("web1/@latest/disk/vdc.raw")
    with pytest.raises(NotFound):
        folders.open("web1")


def test_one_name_of_latest_is_asked_for_anew(repository: Repository, folders: Folders, clock: Clock) -> None:
    assert target(folders, "@latest") == LATER
    put_segment(repository, STREAM, 1, at(10, 50 * SECOND, 7))
    assert target(folders, "@latest") == LATER
    clock.now += tree.FRESH_S
    fresh = target(folders, "@latest")
    assert fresh == f"@{folder_time(50 * SECOND, exact=True)}"
    assert first_byte(folders, f"web1/{fresh}") == 7


def test_sizes_are_those_of_the_open_files(folders: Folders) -> None:
    for name in folders.names("web1/@latest/disk"):
        path = f"web1/{LATER}/disk/{name}"
        file = folders.open(path)
        assert folders.look_up(path) == file.node
        assert file.node.time_ns == 40 * SECOND + 5
        assert len(file.read(0, 1 << 30)) == file.node.length
        file.close()


def test_a_folder_of_disks_is_listed_without_their_block_maps(
    repository: Repository, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for a VMDK of more than 2 TiB, which is one only where not all of it is used."""
    large = Vm("e" * 32, "web2", "web2", "", "", 0)
    record(repository, large)
    with write_point(repository, "test", first_copy=True) as writer:
        disks = [SealedDisk(name, size, Tree(size, None)) for name, size in (("vda", 1 << 40), ("vdb", 3 << 40))]
        sealer = Sealer(repository, writer, disks, Replay([Patches(), Patches()], 0, following=False))
        sealer.feed(opening())
        sealer.commit(None, Origin(large.vm, 1, "cd" * 16, {}), 0)
    looked: list[int] = []
    of = UsedRanges.of

    def seen(used: UsedRanges, tree: Tree, patches: Patches | None) -> Runs:
        looked.append(tree.size)
        return of(used, tree, patches)

    monkeypatch.setattr(UsedRanges, "of", seen)
    names = folders.names("web2/@1970-01-01_00.00.10/disk")
    assert names == [*(f"vda.{form}" for form in SHOWN_FORMATS), *(f"vdb.{form}" for form in ("raw", "qcow2", "vhdx", "vmdk"))]
    assert looked == [3 << 40]


def leases(repository: Repository) -> int:
    return len(list(repository.store.list("leases/")))


def test_a_moment_is_let_go_of_when_nobody_has_used_it_for_a_while(
    repository: Repository, folders: Folders, clock: Clock
) -> None:
    path = f"web1/{LATER}/disk/vda.raw"
    file = folders.open(path)
    clock.now += 10 * held.UNUSED_S
    folders.held.tidy()
    assert leases(repository) == 1, "somebody has a file open"
    assert file.read(0, 1) == b"\x06"
    file.close()
    clock.now += held.UNUSED_S - 1
    folders.held.tidy()
    assert leases(repository) == 1
    clock.now += 1
    folders.held.tidy()
    assert leases(repository) == 0
    assert first_byte(folders, f"web1/{LATER}") == 6, "it opens again"


def test_a_lease_that_cannot_be_deleted_fails_nobody_who_opens_something_else(
    repository: Repository, folders: Folders, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(name: str) -> None:
        raise StorageError(name, "it cannot be deleted just now")

    assert first_byte(folders, f"web1/{LATER}") == 6
    clock.now += held.UNUSED_S
    with monkeypatch.context() as failing:
        failing.setattr(repository.documents, "delete", refused)
        assert folders.names("web1/@1970-01-01_00.00.30Z/disk")
    assert leases(repository) == 2, "it is there until it expires"


def test_few_stay_open_of_many_that_are_looked_into(
    repository: Repository, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "MOST_UNUSED", 2)
    names = [f"web1/@1970-01-01_00.00.{second}" for second in (10, 20, 30, 40)]
    in_use = folders.open(f"web1/{EXACT}/disk/vda.qcow2")
    for name in names:
        assert isinstance(folders.look_up(f"{name}/disk/vda.raw"), File)
        assert leases(repository) <= 4
    assert in_use.read(0, 4) == b"QFI\xfb"
    in_use.close()
    folders.held.tidy()
    assert len(list(repository.store.list("leases/"))) == 2


def test_several_threads_find_one_moment(repository: Repository, folders: Folders) -> None:
    found: list[bytes] = []
    begin = threading.Barrier(4)

    def read() -> None:
        begin.wait()
        file = folders.open(f"web1/{LATER}/disk/vda.vhdx")
        found.append(file.read(0, 1 << 20))
        file.close()

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert leases(repository) == 1


def test_what_a_rollback_left_is_a_folder_beside_the_vm(
    repository: Repository, points: list[RecoveryPoint], folders: Folders
) -> None:
    last = points[-1]
    with write_point(repository, "rollback", first_copy=False) as writer:
        link, back = parent_link(repository, last), RolledBack(points[0].point, points[0].time_ns, 1)
        at, disks = 50 * SECOND, points[0].disks
        turn = RecoveryPoint(writer.point, VM.vm, at, last.number + 1, 1, link, "crash", "crash", "", disks, rolled_back=back)
        writer.commit(turn)
    assert folders.names("") == ["web1", "web1~1"]
    assert set(folders.names("web1")) - set(folders.names("web1~1")) == {f"@{folder_time(at, exact=False)}"}
    assert (first_byte(folders, "web1/@latest"), first_byte(folders, "web1~1/@latest")) == (0, 6)
    with pytest.raises(NotFound):
        folders.look_up("web1~2")
