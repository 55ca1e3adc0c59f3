# SPDX-License-Identifier: AGPL-3.0-or-later
"""Copies of a guest's files: what one of them cannot be, and what must never come of it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from everywhen.guest.errors import GuestDamaged
from everywhen.guest.tree import Content, Entry, Kind, Times
from everywhen.repository.errors import Damaged
from everywhen.services.view.copying import DEEPEST, Copied, Copying
from everywhen.services.view.target_folder import TargetFolder, name_bytes
from everywhen.storage.base import Unavailable
from tests.memory_tree import MemoryContent, MemoryFileSystem, Node

NOBODY = 65534


def copied(system: MemoryFileSystem, target: Path, *, overwrite: bool = False, umask: int = 0o022) -> Copied:
    folder = TargetFolder.at(str(target), overwrite=overwrite)
    try:
        copying = Copying(system, folder, lambda _: None, umask=umask)
        copying.copy_content(system.root, made=False)
    finally:
        folder.close()
    return copying.copied


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "../x", "a\0b", "/", "x" * 2000, "\ud83d"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(GuestDamaged):
        name_bytes(name)


@pytest.mark.parametrize("name", ["a\\b", "-rf", "a\nb", "\udcff", "...", "C:"])
def test_names_that_are_odd(name: str) -> None:
    assert name_bytes(name) == name.encode("utf-8", "surrogateescape")


def test_even_who_is_believed_makes_nothing_outside(tmp_path: Path) -> None:
    """A second wall: whoever answers is asked to check names, too."""
    system = MemoryFileSystem()
    folder = system.add("/folder", Kind.FOLDER)
    folder.inner["../outside"] = Node(Entry(name="../outside", kind=Kind.FILE, number=99, size=0))
    folder.streams["../../stream"] = b"x"
    target = tmp_path / "target"
    target.mkdir()
    done = copied(system, target)
    assert [why for _, why in done.problems if "not a name but a path" in why] == [why for _, why in done.problems]
    assert len(done.problems) == 2
    assert os.listdir(tmp_path) == ["target"]
    assert os.listdir(target) == ["folder"]


def test_what_cannot_be_read_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    system = MemoryFileSystem()
    system.add("/a", content=b"a", error=GuestDamaged("rubbish"))
    system.add("/b", content=b"b", error=Damaged("a chunk is damaged"))
    system.add("/c", content=b"c")
    system.put("", "d", GuestDamaged("an inode of no kind"))
    system.add("/" + "n" * 300, content=b"long")
    system.add("/empty link", Kind.LINK, target="")
    system.add("/odd link", Kind.LINK, target="\ud83d")
    done = copied(system, tmp_path)
    assert dict(done.problems) == {
        "a": "rubbish",
        "b": "a chunk is damaged",
        "d": "an inode of no kind",
        "n" * 300: os.strerror(errno.ENAMETOOLONG),
        "empty link": os.strerror(errno.ENOENT),
        "odd link": "it leads to a name that cannot be written here",
    }
    assert os.listdir(tmp_path) == ["c"]
    assert (done.files, done.bytes) == (1, 1)


class Watched(MemoryFileSystem):
    """Calls `reading` whenever a content is read."""

    reading: Callable[[], None]

    def open(self, entry: Entry, stream: str = "") -> Content:
        self.reading()
        return super().open(entry, stream)


@pytest.mark.parametrize("links", [True, False])
def test_a_file_has_its_name_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, links: bool) -> None:
    """Who kills the copy leaves no half file that looks like one; what somebody else puts there meanwhile stays."""

    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "as on FAT")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    system = Watched()
    for name in "abc":
        system.add(f"/{name}", content=name.encode())
    seen: list[list[str]] = []

    def look() -> None:
        seen.append([name for name in sorted(os.listdir(tmp_path)) if not name.startswith(".everywhen-")])
        assert len(os.listdir(tmp_path)) == len(seen[-1]) + 1
        if len(seen) == 2:
            (tmp_path / "b").write_text("somebody's")

    system.reading = look
    found = copied(system, tmp_path)
    assert seen == [[], ["a"], ["a", "b"]]
    assert found.problems == [("b", "it is here already; --overwrite replaces it")]
    assert {name: (tmp_path / name).read_text() for name in os.listdir(tmp_path)} == {"a": "a", "b": "somebody's", "c": "c"}
    assert (tmp_path / "a").stat().st_nlink == 1


def test_a_repository_out_of_reach_ends_it(tmp_path: Path) -> None:
    system = MemoryFileSystem()
    system.add("/a", content=b"a", error=Unavailable("packs/x", "gone"))
    with pytest.raises(Unavailable):
        copied(system, tmp_path)
    assert os.listdir(tmp_path) == []


def test_folders_that_go_round_or_too_deep(tmp_path: Path) -> None:
    system = MemoryFileSystem()
    folder = system.add("/a", Kind.FOLDER)
    folder.inner["again"] = folder
    system.add("/deep" * (DEEPEST + 3), Kind.FOLDER)
    done = copied(system, tmp_path)
    assert [why for _, why in done.problems] == [
        "this folder has been found under another name already; not entered",
        f"more than {DEEPEST} folders within folders",
    ]
    assert os.listdir(tmp_path / "a") == []


class _Huge(MemoryContent):
    @property
    def size(self) -> int:
        return 1 << 63


class _WithHuge(MemoryFileSystem):
    def open(self, entry: Entry, stream: str = "") -> Content:
        return _Huge(b"") if entry.name == "huge" else super().open(entry, stream)


def test_an_absurd_size_is_an_error_of_that_file(tmp_path: Path) -> None:
    system = _WithHuge()
    system.add("/huge", content=b"x")
    system.add("/small", content=b"x")
    done = copied(system, tmp_path)
    assert [path for path, _ in done.problems] == ["huge"]
    assert os.listdir(tmp_path) == ["small"]


def test_without_modes_the_umask_decides_and_streams_are_files(tmp_path: Path) -> None:
    system = MemoryFileSystem("ntfs")
    system.add("/folder", Kind.FOLDER, streams={"s": b"of a folder"})
    system.add("/file", content=b"x", streams={"a": b"1", "b": b"22"}, times=Times(modified=123456789, accessed=5))
    done = copied(system, tmp_path, umask=0o027)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750
    assert {name: (tmp_path / name).read_bytes() for name in ("file:a", "file:b", "folder:s")} == {
        "file:a": b"1",
        "file:b": b"22",
        "folder:s": b"of a folder",
    }
    assert ((tmp_path / "file").stat().st_mtime_ns, (tmp_path / "file").stat().st_atime_ns) == (123456789, 5)
    assert done.lost == {}


def test_times_that_no_clock_shows(tmp_path: Path) -> None:
    system = MemoryFileSystem()
    system.add("/file", times=Times(modified=1 << 90))
    assert copied(system, tmp_path).lost == {"times": 1}


@pytest.fixture
def nobody(tmp_path: Path) -> Iterator[Path]:
    """A folder that this process, not root any more, may write to."""
    if os.geteuid():
        yield tmp_path
        return
    target = tmp_path / "target"
    target.mkdir()
    os.chown(target, NOBODY, NOBODY)
    yield target


def test_who_is_not_root_is_told_what_is_not_restored(nobody: Path) -> None:
    system = MemoryFileSystem()
    system.add("/tool", content=b"x", mode=0o4755, uid=0, gid=12345)
    ours = (os.geteuid(), os.getegid()) if os.geteuid() else (NOBODY, NOBODY)
    system.add("/own", content=b"x", mode=0o2755, uid=ours[0], gid=ours[1])
    system.add("/labelled", attributes={"trusted.x": b"1", "user.x": b"2"}, mode=0o600)
    folder = TargetFolder.at(str(nobody), overwrite=False)
    before = os.geteuid(), os.getegid()
    if not before[0]:
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
    try:
        copying = Copying(system, folder, lambda _: None, umask=0)
        copying.copy_content(system.root, made=False)
    finally:
        os.seteuid(before[0])
        os.setegid(before[1])
        folder.close()
    assert stat.S_IMODE((nobody / "tool").stat().st_mode) == 0o755
    lost = copying.copied.lost
    assert lost["owner"] >= 1
    assert lost["set-user-id or set-group-id"] == 1
    assert lost["trusted.x"] == 1
    assert os.getxattr(nobody / "labelled", "user.x") == b"2"
