# SPDX-License-Identifier: AGPL-3.0-or-later
"""Paths in a file system: links, `..`, what is missing, what goes round."""

from __future__ import annotations

from pathlib import Path

import pytest

from everywhen.guest.errors import GuestError, LinkUnusable, NoSuchPath, WrongKind
from everywhen.guest.tree import Entry, FileSystem, Kind
from everywhen.guest.walking import DEEPEST, Found, find, walk
from tests.guest_images import Image, empty, need, opened, run


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> FileSystem:
    need("mkfs.ext4")
    folder = tmp_path_factory.mktemp("walking")
    tree = folder / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "file").write_text("content")
    for name, target in {
        "to b": "a/b",
        "absolute": "/a/b",
        "over the top": "../../../a/b/file",
        "to link": "to b/file",
        "dangling": "a/nothing",
        "round": "round about",
        "round about": "round",
        "a/back": "..",
        "grows": "grows/" + "/x" * 400,
    }.items():
        (tree / name).symlink_to(target)
    image = empty(folder / "image", 4 << 20)
    run("mkfs.ext4", "-q", "-d", tree, image)
    return opened(Image(image))


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/", "/"),
        ("", "/"),
        ("/a//./b/", "/a/b"),
        ("/to b/file", "/a/b/file"),
        ("/absolute/../b/file", "/a/b/file"),
        ("/over the top", "/a/b/file"),
        ("/to link", "/a/b/file"),
        ("/../..", "/"),
        ("/a/back/a/back/a/b", "/a/b"),
    ],
)
def test_paths_lead_where_they_lead_in_the_guest(path: str, found: str, system: FileSystem) -> None:
    assert find(system, path).path == found


def test_a_link_itself(system: FileSystem) -> None:
    link = find(system, "/to b", follow=False)
    assert (link.path, link.entry.kind, link.entry.target) == ("/to b", Kind.LINK, "a/b")
    assert find(system, "/round", follow=False).entry.target == "round about"


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("/a/b/no/such", NoSuchPath, "/a/b/no/such: no such file or folder; what exists of the way to it is /a/b$"),
        ("/dangling", NoSuchPath, "/dangling: .* is /a$"),
        ("/a/b/file/x", WrongKind, "/a/b/file: a file, not a folder"),
        ("/round", LinkUnusable, "round in circles"),
        ("/grows", LinkUnusable, "longer than any path|in circles"),
        ("/" + "x/" * 5000, NoSuchPath, "no such file"),
    ],
)
def test_what_cannot_be_found_says_why(path: str, error: type[GuestError], words: str, system: FileSystem) -> None:
    with pytest.raises(error, match=words):
        find(system, path)


def test_a_folder_has_no_content_and_a_file_no_entries(system: FileSystem) -> None:
    with pytest.raises(WrongKind, match="a folder has no content"):
        system.open(find(system, "/a").entry)
    with pytest.raises(WrongKind, match="not a folder"):
        list(system.entries(find(system, "/a/b/file").entry))
    with pytest.raises(WrongKind, match="no such stream"):
        system.open(find(system, "/a/b/file").entry, "stream")


class Bottomless:
    """Each folder has one that was never seen, and two names for each."""

    kind = "ext4"

    def entries(self, folder: Entry) -> list[Entry]:
        number = folder.number + 1
        return [Entry(name=name, kind=Kind.FOLDER, number=number, size=0) for name in ("a", "b")]


def test_folders_without_end_end() -> None:
    start = Found("/", Entry(name="", kind=Kind.FOLDER, number=0, size=0))
    found = list(walk(Bottomless(), start))  # type: ignore[arg-type]
    assert len([item for item in found if isinstance(item, Found)]) == DEEPEST
    assert "too deep" in " ".join(str(item[1].error) for item in found if not isinstance(item, Found))


class DriveLetters:
    """As NTFS has links."""

    kind = "ntfs"
    root = Entry(name="", kind=Kind.FOLDER, number=0, size=0)

    def child(self, folder: Entry, name: str) -> Entry:
        if name.startswith("link"):
            target = {"link1": "C:\\Users", "link2": "\\\\server\\share", "link3": "sub\\file"}[name]
            return Entry(name=name, kind=Kind.LINK, number=2, size=0, target=target)
        return Entry(name=name, kind=Kind.FOLDER if name == "sub" else Kind.FILE, number=3, size=0)


def test_links_of_windows() -> None:
    system = DriveLetters()
    for name in ("link1", "link2"):
        with pytest.raises(LinkUnusable, match="which drive that is, the volume does not know"):
            find(system, f"/{name}")  # type: ignore[arg-type]
    assert find(system, "/link3").path == "/sub/file"  # type: ignore[arg-type]


def test_names_on_disk_need_not_be_text(system: FileSystem, tmp_path: Path) -> None:
    need("mkfs.ext2")
    tree = tmp_path / "tree"
    tree.mkdir()
    with open(bytes(tree) + b"/\xff\xfe x", "wb"):
        pass
    image = empty(tmp_path / "image", 1 << 20)
    run("mkfs.ext2", "-q", "-d", tree, image)
    names = [entry.name for entry in opened(Image(image)).entries(opened(Image(image)).root) if isinstance(entry, Entry)]
    assert "\udcff\udcfe x" in names
    assert find(opened(Image(image)), "/\udcff\udcfe x").entry.kind is Kind.FILE
    for name in ("\udcff", "\ud800"):  # the second cannot come from bytes
        with pytest.raises(NoSuchPath):
            find(system, f"/{name}")
