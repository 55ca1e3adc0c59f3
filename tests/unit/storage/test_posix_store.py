# SPDX-License-Identifier: AGPL-3.0-or-later
"""What only the file system store must do: the order of its system calls [I-1], what interruptions leave [I-9], strangers."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from everywhen.storage.base import (
    AccessDenied,
    AlreadyExists,
    NotAnObject,
    ObjectNotFound,
    OutOfSpace,
    ReadOnly,
    StorageError,
    Unavailable,
)
from everywhen.storage.posix import TEMPORARY, PosixStore
from everywhen.storage.posix_calls import PosixCalls

HOUR = 3_600_000_000_000


class RecordedCalls(PosixCalls):
    """Records what is asked of the system, and lets a call fail: `fail["fsync"] = errno.EIO`."""

    def __init__(self) -> None:
        self.made: list[tuple[str, ...]] = []
        self.fail: dict[str, int] = {}
        self.paths: dict[int, str] = {}

    def note(self, call: str, *paths: str) -> None:
        short = tuple(TEMPORARY if TEMPORARY in path else os.path.basename(path) for path in paths)
        self.made.append((call, *short))
        if call in self.fail:
            raise OSError(self.fail[call], os.strerror(self.fail[call]), *paths[:1])

    def create(self, path: str) -> int:
        self.note("create", path)
        descriptor = super().create(path)
        self.paths[descriptor] = path
        return descriptor

    def write(self, descriptor: int, parts: object) -> None:
        self.note("write", self.paths[descriptor])
        super().write(descriptor, parts)  # type: ignore[arg-type]

    def fsync(self, descriptor: int) -> None:
        self.note("fsync", self.paths[descriptor])
        super().fsync(descriptor)

    def fsync_folder(self, path: str) -> None:
        self.note("fsync_folder", path)
        super().fsync_folder(path)

    def link(self, source: str, target: str) -> None:
        self.note("link", source, target)
        super().link(source, target)

    def rename_new(self, source: str, target: str) -> None:
        self.note("rename_new", source, target)
        super().rename_new(source, target)

    def replace(self, source: str, target: str) -> None:
        self.note("replace", source, target)
        super().replace(source, target)

    def unlink(self, path: str) -> None:
        self.note("unlink", path)
        super().unlink(path)

    def mkdir(self, path: str) -> None:
        self.note("mkdir", path)
        super().mkdir(path)


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


NAMING: dict[bool, list[tuple[str, ...]]] = {
    True: [("link", TEMPORARY, "x"), ("unlink", TEMPORARY)],
    False: [("replace", TEMPORARY, "x")],
}


@pytest.mark.parametrize("if_absent", [True, False])
def test_a_put_is_durable_before_it_is_seen_and_its_name_before_it_returns(tmp_path: Path, if_absent: bool) -> None:
    calls = RecordedCalls()
    store = PosixStore(tmp_path / "root", calls=calls)
    store.put("packs/ab/x", [b"1", b"2"], if_absent=if_absent)
    written = [("create", TEMPORARY), ("write", TEMPORARY), ("fsync", TEMPORARY), *NAMING[if_absent]]
    made = [("mkdir", "root"), ("mkdir", "packs"), ("mkdir", "ab")]
    durable = [("fsync_folder", "packs"), ("fsync_folder", "root"), ("fsync_folder", tmp_path.name)]
    assert calls.made == [*made, *durable, *written, ("fsync_folder", "ab")]
    calls.made.clear()
    store.put("packs/ab/x", [b"3"])
    assert calls.made[:1] == [("create", TEMPORARY)]
    assert calls.made[-1] == ("fsync_folder", "ab")


def test_a_loser_writes_nothing(tmp_path: Path) -> None:
    calls = RecordedCalls()
    store = PosixStore(tmp_path, calls=calls)
    store.put("points/p", [b"first"])
    calls.made.clear()
    with pytest.raises(AlreadyExists):
        store.put("points/p", [b"second"], if_absent=True)
    assert calls.made == []


def test_folders_made_by_another_process_are_made_durable_too(tmp_path: Path) -> None:
    (tmp_path / "packs" / "ab").mkdir(parents=True)
    calls = RecordedCalls()
    PosixStore(tmp_path, calls=calls).put("packs/ab/x", [b"1"])
    assert calls.made[:2] == [("fsync_folder", "packs"), ("fsync_folder", tmp_path.name)]


def test_a_deletion_is_durable_also_when_another_process_was_faster(tmp_path: Path) -> None:
    calls = RecordedCalls()
    store = PosixStore(tmp_path, calls=calls)
    store.put("packs/x", [b"1"])
    calls.made.clear()
    store.delete("packs/x")
    store.delete("packs/x")
    assert calls.made == [("unlink", "x"), ("fsync_folder", "packs")] * 2


@pytest.mark.parametrize(
    ("code", "expected"),
    [(errno.ENOSPC, OutOfSpace), (errno.EDQUOT, OutOfSpace), (errno.EROFS, ReadOnly), (errno.EACCES, AccessDenied),
     (errno.EPERM, AccessDenied), (errno.EIO, StorageError), (errno.ETIMEDOUT, Unavailable)],
)  # fmt: skip
@pytest.mark.parametrize("call", ["mkdir", "create", "write", "fsync", "replace"])
def test_a_put_that_fails_leaves_what_was_there_and_no_temporary_file(
    tmp_path: Path, call: str, code: int, expected: type[StorageError]
) -> None:
    calls = RecordedCalls()
    store = PosixStore(tmp_path, calls=calls)
    store.put("vms/a", [b"before"])
    calls.fail[call] = code
    with pytest.raises(expected) as caught:
        store.put("new/a" if call == "mkdir" else "vms/a", [b"after"])
    assert type(caught.value) is expected
    assert files(tmp_path) == {"vms/a"}
    assert store.get("vms/a") == b"before"
    calls.fail.clear()
    store.put("vms/a", [b"after"])
    assert store.get("vms/a") == b"after"


def test_a_name_that_is_not_known_to_be_durable_is_no_success(tmp_path: Path) -> None:
    calls = RecordedCalls()
    store = PosixStore(tmp_path, calls=calls)
    store.put("vms/a", [b"before"])
    calls.fail["fsync_folder"] = errno.EIO
    with pytest.raises(Unavailable, match="not durably"):
        store.put("vms/a", [b"after"])
    with pytest.raises(Unavailable, match="not durably"):
        store.delete("vms/a")


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_hard_links_the_system_renames_without_replacing(tmp_path: Path, code: int) -> None:
    calls = RecordedCalls()
    calls.fail["link"] = code
    store = PosixStore(tmp_path, calls=calls)
    store.put("points/p", [b"first"], if_absent=True)
    assert ("rename_new", TEMPORARY, "p") in calls.made
    (tmp_path / "points" / "q").write_bytes(b"by another process, after the store has looked")
    with pytest.raises(FileExistsError):
        calls.rename_new(str(tmp_path / "points" / "p"), str(tmp_path / "points" / "q"))
    assert store.get("points/p") == b"first"
    assert store.traits.put_if_absent
    assert files(tmp_path) == {"points/p", "points/q"}


def test_a_file_system_without_exclusive_naming_is_for_one_writer(tmp_path: Path) -> None:
    calls = RecordedCalls()
    calls.fail |= {"link": errno.EPERM, "rename_new": errno.EINVAL}
    store = PosixStore(tmp_path, calls=calls)
    assert store.traits.put_if_absent
    store.put("points/p", [b"first"], if_absent=True)
    with pytest.raises(AlreadyExists):
        store.put("points/p", [b"second"], if_absent=True)
    assert store.get("points/p") == b"first"
    assert not store.traits.put_if_absent
    assert files(tmp_path) == {"points/p"}


def test_the_winner_may_come_between_the_look_and_the_naming(tmp_path: Path) -> None:
    class Late(RecordedCalls):
        def fsync(self, descriptor: int) -> None:
            super().fsync(descriptor)
            (tmp_path / "points" / "p").write_bytes(b"winner")

    for failing in ({}, {"link": errno.EPERM}, {"link": errno.EPERM, "rename_new": errno.EINVAL}):
        calls = Late()
        calls.fail = failing
        with pytest.raises(AlreadyExists):
            PosixStore(tmp_path, calls=calls).put("points/p", [b"loser"], if_absent=True)
        assert files(tmp_path) == {"points/p"}
        (tmp_path / "points" / "p").unlink()


def strange(kind: str, path: Path) -> None:
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        target = path.parent.parent.parent / "outside"
        target.write_bytes(b"outside") if kind == "link" else None
        path.symlink_to(target)


@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "dangling link"])
def test_a_stranger_where_an_object_should_be_is_an_error(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "root"
    store = PosixStore(root)
    store.put("vms/a", [b"x"])
    strange(kind, root / "vms" / "b")
    asked: list[Callable[[], object]] = [
        lambda: store.get("vms/b"),
        lambda: store.get_range("vms/b", 0, 1),
        lambda: store.size("vms/b"),
        lambda: store.put("vms/b", [b"mine"]),
        lambda: store.put("vms/b", [b"mine"], if_absent=True),
        lambda: store.delete("vms/b"),
    ]
    if kind != "folder":
        asked.append(lambda: list(store.list("vms/")))
    for ask in asked:
        with pytest.raises(NotAnObject):
            ask()
    assert os.path.lexists(root / "vms" / "b")
    assert not (tmp_path / "outside").exists() or (tmp_path / "outside").read_bytes() == b"outside"


def test_a_link_among_the_folders_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a").write_bytes(b"secret")
    root = tmp_path / "root"
    root.mkdir()
    (root / "vms").symlink_to(outside)
    store = PosixStore(root)
    for ask in (
        store.get,
        store.size,
        store.delete,
        lambda name: store.put(name, [b""]),
        lambda name: list(store.list("vms/")),
    ):
        with pytest.raises(NotAnObject):
            ask("vms/a")
    assert files(outside) == {"a"}


def test_foreign_files_are_not_listed(tmp_path: Path) -> None:
    store = PosixStore(tmp_path)
    store.put("vms/a", [b"x"])
    for name in ("lost+found", "Thumbs.db", ".tmp-1-1", "vms/.tmp-2-2", "vms/A"):
        (tmp_path / name).write_bytes(b"?")
    assert [found.name for found in store.list()] == ["vms/a"]


def test_a_drive_that_was_taken_out_is_not_an_empty_store(tmp_path: Path) -> None:
    root = tmp_path / "root"
    store = PosixStore(root)
    store.put("vms/a", [b"x"])
    root.rename(tmp_path / "elsewhere")
    for made in (False, True):
        if made:
            root.mkdir()  # the mount point without its drive
        for ask in (store.get, store.size, store.delete, lambda name: store.put(name, [b""]), lambda name: list(store.list())):
            with pytest.raises(Unavailable, match="drive"):
                ask("vms/a")
    assert list(root.iterdir()) == []
    root.rmdir()
    (tmp_path / "elsewhere").rename(root)
    assert store.get("vms/a") == b"x"


def test_a_root_that_does_not_exist_is_empty_until_the_first_put(tmp_path: Path) -> None:
    store = PosixStore(tmp_path / "a" / "b")
    assert list(store.list()) == []
    with pytest.raises(ObjectNotFound):
        store.get("everywhen")
    assert store.space().total > 0
    store.delete("everywhen")
    assert not (tmp_path / "a").exists()
    store.put("everywhen", [b"x"])
    assert store.get("everywhen") == b"x"


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotAnObject):
        PosixStore(tmp_path / "file")


def test_the_sweep_takes_old_temporary_files_only(tmp_path: Path) -> None:
    store = PosixStore(tmp_path)
    store.put("vms/a", [b"x"])
    now = 1_800_000_000 * 10**9
    old = {"vms/.tmp-1-0": HOUR, "vms/ab/.tmp-1-1": HOUR, "vms/a": 2 * HOUR, ".tmp-1-2": 3 * HOUR}
    new = {"vms/.tmp-1-3": HOUR - 1}
    foreign = {"photos/.tmp-1-4": 2 * HOUR, "photos/vms/.tmp-1-5": 2 * HOUR, ".tmp-mine": 2 * HOUR}
    (tmp_path / "outside").mkdir()
    (tmp_path / "keys").symlink_to(tmp_path / "outside")
    for name, age in (old | new | foreign | {"outside/.tmp-1-6": 2 * HOUR}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
        os.utime(tmp_path / name, ns=(now - age, now - age))
    assert store.sweep_temporaries(["keys", "vms"], now_ns=now, older_than_ns=HOUR) == 3
    assert files(tmp_path) == {"vms/a", *new, *foreign, "outside/.tmp-1-6"}


def test_leftovers_of_a_process_with_the_same_number_are_no_obstacle(tmp_path: Path) -> None:
    store = PosixStore(tmp_path)
    for number in range(3):
        (tmp_path / f"{TEMPORARY}{os.getpid()}-{number}").write_bytes(b"leftover")
    store.put("a", [b"x"])
    assert store.get("a") == b"x"
    assert len(files(tmp_path)) == 4


def open_files_below(folder: Path) -> int:
    links = (os.path.join("/proc/self/fd", number) for number in os.listdir("/proc/self/fd"))
    return sum(os.readlink(link).startswith(str(folder)) for link in links if os.path.lexists(link))


def test_what_another_process_deletes_or_replaces_is_not_read_any_longer(tmp_path: Path) -> None:
    ours, theirs = PosixStore(tmp_path), PosixStore(tmp_path)
    ours.put("packs/x", [b"first"])
    assert ours.get_range("packs/x", 0, 5) == b"first"
    theirs.put("packs/x", [b"second"])
    assert ours.get_range("packs/x", 0, 6) == b"second"
    theirs.delete("packs/x")
    with pytest.raises(ObjectNotFound):
        ours.get_range("packs/x", 0, 6)
    assert open_files_below(tmp_path) == 0


def test_a_deleted_object_gives_its_space_back_at_once(tmp_path: Path) -> None:
    store = PosixStore(tmp_path)
    store.put("packs/x", [b"x"])
    store.get_range("packs/x", 0, 1)
    assert open_files_below(tmp_path) == 1
    store.delete("packs/x")
    assert open_files_below(tmp_path) == 0


def read_all(store: PosixStore) -> None:
    numbers = list(range(150)) * 12
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda number: store.get_range(f"packs/{number}", 0, 1)[0], numbers)) == numbers


def test_few_files_stay_open_and_none_when_the_store_is_gone(tmp_path: Path) -> None:
    store = PosixStore(tmp_path)
    for number in range(150):
        store.put(f"packs/{number}", [bytes([number])])
    read_all(store)
    assert 0 < open_files_below(tmp_path) <= 100
    store.close()
    assert open_files_below(tmp_path) == 0
    read_all(store)
    del store
    gc.collect()
    assert open_files_below(tmp_path) == 0


WRITER = """
import os, sys, threading
from everywhen.storage.posix import PosixStore
store = PosixStore(sys.argv[1])
def write(thread):
    for number in range(10_000):
        name = f"packs/{number % 16:02x}/{thread}-{number}"
        store.put(name, [name.encode().ljust(50) * 2000] * 5, if_absent=number % 2 == 0)
        os.write(1, (name + "\\n").encode())  # in one call, so that lines of several threads do not mix
for thread in range(3):
    threading.Thread(target=write, args=(thread,)).start()
"""


@pytest.mark.parametrize("acknowledged", [1, 7, 20, 41])
def test_a_killed_writer_leaves_whole_objects_and_all_it_acknowledged(tmp_path: Path, acknowledged: int) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout
        names = {writer.stdout.readline().strip() for _ in range(acknowledged)}
        writer.kill()
        names |= {line.strip() for line in writer.stdout if line.endswith("\n")}
    store = PosixStore(tmp_path)
    listed = {found.name: found.size for found in store.list()}
    assert names <= set(listed)
    for name, size in listed.items():
        assert size == 500_000
        assert store.get(name) == name.encode().ljust(50) * 10_000
    store.sweep_temporaries(["packs"], now_ns=2**63, older_than_ns=0)
    assert {name for name in files(tmp_path) if TEMPORARY in name} == set()
    assert set(listed) == files(tmp_path)
