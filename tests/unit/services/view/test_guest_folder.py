# SPDX-License-Identifier: AGPL-3.0-or-later
"""A guest's file system as folders: asked a path at a time, in any order, and hostile."""

from __future__ import annotations

import threading

import pytest

from everywhen.guest.errors import GuestDamaged, GuestError, GuestLimit, GuestUnsupported, NoSuchPath, WrongKind
from everywhen.guest.messages import CHUNK
from everywhen.guest.tree import Entry, Kind
from everywhen.services.view import guest_folder
from everywhen.services.view.guest_folder import Ahead, GuestFolder, Known
from everywhen.services.view.nodes import File, Folder, Link, Special
from tests.guest_images import content_of
from tests.memory_tree import MemoryContent, MemoryFileSystem

SIZE = 3 * CHUNK + 70_001


def shown(system: MemoryFileSystem, said: list[str] | None = None, most: int = 1000) -> GuestFolder:
    return GuestFolder(system, Known(most), (said if said is not None else []).append, where="web1/@x/files", time_ns=7)


def test_what_is_there() -> None:
    system = MemoryFileSystem()
    first = system.add("a/file", content=b"four", mode=0o640, uid=3, gid=4).entry
    system.add("a/b/link", Kind.LINK, target="/a/file")
    system.add("a/pipe", Kind.PIPE)
    folder = shown(system)
    assert folder.names(()) == ["a"]
    assert folder.names(("a",)) == ["file", "b", "pipe"]
    file = folder.look_up(("a", "file"))
    assert isinstance(file, File)
    assert (file.length, file.time_ns, file.guest) == (4, 7, first)
    link = folder.look_up(("a", "b", "link"))
    assert isinstance(link, Link)
    assert link.target == "../../a/file"
    assert isinstance(folder.look_up(("a", "b")), Folder)
    assert isinstance(folder.look_up(("a", "pipe")), Special)
    assert folder.open(("a", "file"))[1].read(1, 10) == b"our"
    numbers = {folder.look_up(path).number for path in ((), ("a",), ("a", "file"), ("a", "pipe"))}
    assert len(numbers - {0}) == 4


@pytest.mark.parametrize("listed", [False, True])
def test_what_is_not(listed: bool) -> None:
    """The same whether a folder was listed before or not."""
    system, said = MemoryFileSystem(), list[str]()
    outer = system.add("a", Kind.FOLDER)
    inside = system.add("a/b/c", Kind.FOLDER)
    system.add("a/file", content=b"x")
    system.put("a/b/c", "loop", outer)
    system.put("a", "broken", GuestDamaged("an inode that is none"))
    system.put("a", "up/../..", GuestDamaged("a path"))
    system.put("a", "half \ud800", inside)
    system.add("a/b/far", Kind.LINK, target="\udfff")
    folder = shown(system, said)
    if listed:
        assert folder.names(("a",)) == ["b", "file", "broken"]
        assert folder.names(("a", "b", "c")) == ["loop"]
        assert len(said) == 2
        assert all("an entry is not shown" in line for line in said)
    for path, error in (
        (("none",), NoSuchPath),
        (("a", "none"), NoSuchPath),
        (("a", "file", "more"), NoSuchPath),
        (("a", "broken"), GuestError),
        (("a", "b", "far"), GuestUnsupported),
        (("a", "b", "c", "loop"), GuestDamaged),
        (("a", "b", "c", "loop", "b"), GuestDamaged),
        (("a",) * 1025, GuestLimit),
    ):
        for _ in range(2):
            with pytest.raises(error):
                folder.look_up(path)
    with pytest.raises(WrongKind):
        folder.names(("a", "file"))


def test_little_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    system = MemoryFileSystem()
    for number in range(30):
        system.add(f"a/{number}")
    folder = shown(system, most=10)
    assert len(folder.names(("a",))) == 30
    asked = list[str]()
    child = system.child

    def counted(parent: Entry, name: str) -> Entry:
        asked.append(name)
        return child(parent, name)

    monkeypatch.setattr(system, "child", counted)
    folder.look_up(("a", "29"))
    assert asked == [], "it was just listed"
    folder.look_up(("a", "0"))
    assert asked == ["a", "0"]
    assert all(isinstance(folder.look_up(("a", str(number))), File) for number in range(30))
    monkeypatch.setattr(guest_folder, "MOST_NAMES", 20)
    with pytest.raises(GuestLimit):
        folder.names(("a",))


class Counted(MemoryContent):
    """Counts what is asked of it; bytes from `bad` on cannot be read."""

    def __init__(self, bad: int = 1 << 60) -> None:
        super().__init__(content_of(4, SIZE))
        self.asked = 0
        self.bad = bad

    def read(self, offset: int, length: int) -> bytes:
        self.asked += 1
        if offset + length > self.bad:
            raise GuestDamaged("a block beyond the end")
        return super().read(offset, length)


def test_who_reads_on_asks_seldom_and_gets_every_byte() -> None:
    content = Counted()
    ahead = Ahead(content)
    step = 128 << 10
    assert b"".join(ahead.read(at, step) for at in range(0, SIZE, step)) == content.content
    assert content.asked == 4
    places = [(CHUNK - 10, 70_000), (5, 100), (SIZE - 3, 70_000), (SIZE, 70_000), (SIZE + 10, 5), (0, 2 * CHUNK), (7, 70_000)]
    for at, length in places:
        assert ahead.read(at, length) == content.content[at : at + length], (at, length)


def test_what_is_wrong_farther_on_is_no_error_of_what_is_before() -> None:
    ahead = Ahead(Counted(bad=CHUNK + 200_000))
    assert len(ahead.read(CHUNK, 100_000)) == 100_000
    with pytest.raises(GuestDamaged):
        ahead.read(CHUNK + 150_000, 100_000)


def test_several_threads_read_one_content() -> None:
    content = Counted()
    ahead = Ahead(content)
    wrong: list[int] = []

    def read(first: int) -> None:
        wrong.extend(at for at in range(first, SIZE, 250_000) if ahead.read(at, 80_000) != content.content[at : at + 80_000])

    threads = [threading.Thread(target=read, args=(number * 50_000,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
