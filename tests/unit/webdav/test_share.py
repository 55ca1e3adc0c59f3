# SPDX-License-Identifier: AGPL-3.0-or-later
"""The share over a tree in memory, asked as a web server would ask it."""

from __future__ import annotations

import io
import threading
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any, cast
from urllib.parse import quote, unquote

import pytest

from everywhen.formats.layouts.runs import Runs
from everywhen.interfaces.webdav import resources
from everywhen.interfaces.webdav import tree as tree_of_a_share
from everywhen.interfaces.webdav.attempts import Attempts
from everywhen.interfaces.webdav.gate import Gate
from everywhen.interfaces.webdav.names import shown
from everywhen.interfaces.webdav.resources import Shared
from everywhen.interfaces.webdav.share import Share
from everywhen.interfaces.webdav.tree import LONGEST_PINNED_S, PINNED_S, SharedTree
from everywhen.repository.errors import Damaged
from everywhen.services.escape import visible
from everywhen.services.failures import Failure, NotFound
from everywhen.services.view.folders import Folders
from everywhen.services.view.nodes import File, Folder, Link, Node, OpenFile

TIME = 1_795_000_000 * 10**9
POINT = "web1/@2026-11-18_11.06.40Z"
HOSTILE = [
    "<script>alert(1)<script>",
    '"><img src=x onerror=alert(1)>',
    "javascript:alert(1)",
    "a&amp;b",
    "?query#fragment",
    "back\\slash",
    "%2e%2e%2f",
    "\x1b[2J",
    "txt\u202eexe",
    "caf\udce9",
    "\ud83d",
    "line\nbreak",
    "zero\u200bwidth",
    "trailing.",
    "con",
    "]]>",
]


class MemoryFolders:
    """Stands for `Folders`: what is at each path, and what files hold."""

    def __init__(self, there: dict[str, Node | Exception], contents: dict[str, bytes | Exception]) -> None:
        self.there = {"": Folder(TIME), "web1": Folder(TIME), POINT: Folder(TIME), **there}
        self.contents = contents
        self.opened = self.looked = 0

    def look_up(self, path: str) -> Node:
        self.looked += 1
        found = self.there.get(path, NotFound(f"There is no {path}."))
        if isinstance(found, Exception):
            raise found
        return found

    def names(self, path: str) -> list[str]:
        above = f"{path}/" if path else ""
        return [one[len(above) :] for one in self.there if one and one.startswith(above) and "/" not in one[len(above) :]]

    def open(self, path: str) -> OpenFile:
        found = self.contents[path]
        self.opened += 1

        def read(offset: int, length: int) -> bytes:
            if isinstance(found, Exception):
                raise found
            if offset >= len(found):
                raise Damaged(f"block at {offset}")
            return found[offset : offset + length]

        return OpenFile(file(len(found) if isinstance(found, bytes) else 0), read, lambda: Runs.whole(0), self._close)

    def _close(self) -> None:
        self.opened -= 1


@dataclass
class Asked:
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def members(self) -> dict[str, dict[str, str | None]]:
        """Properties by path, of a listing."""
        found = {}
        for response in ET.fromstring(self.body).iter("{DAV:}response"):  # noqa: S314 - we have written it
            href = response.findtext("{DAV:}href") or ""
            found[href] = {one.tag.removeprefix("{DAV:}"): one.text for one in response.iterfind(".//{DAV:}prop/*")}
        return found


class Served:
    """A share."""

    def __init__(self, there: dict[str, Node | Exception], contents: dict[str, bytes | Exception] | None = None) -> None:
        self.now = 0.0
        self.said: list[str] = []
        self.ended = threading.Event()
        self.folders = MemoryFolders(there, contents or {})
        self.tree = SharedTree(cast("Folders", self.folders), "repo", lambda: self.now)
        self.shared = Shared(self.tree, identity="1", url="repo", ended=self.ended)
        gate = Gate(None, Attempts(lambda: self.now), by_name=True, say=self.said.append)
        self.share = Share(self.shared, gate, self.said.append)

    def ask(self, method: str, path: str, **headers: str) -> Asked:
        begun: list[tuple[str, list[tuple[str, str]]]] = []
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path.encode().decode("latin-1"),
            "SCRIPT_NAME": "",
            "wsgi.input": io.BytesIO(),
            **{f"HTTP_{name.upper()}": value for name, value in headers.items()},
        }
        answer = self.share(environ, lambda status, given: begun.append((status, given)))
        body = b"".join(answer)
        ((status, given),) = begun
        assert len(dict(given)) == len(given)
        assert dict(given)["X-Content-Type-Options"] == "nosniff"
        if status[:3] != "304" and method != "HEAD":
            assert int(dict(given)["Content-Length"]) == len(body)
        return Asked(int(status[:3]), dict(given), body)


class Links(HTMLParser):
    """Of a page: what they say, and where they lead."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.texts: set[str] = set()
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in {"html", "head", "meta", "title", "style", "body", "h1", "table", "tr", "th", "td", "a"}
        self._inside = tag == "a"
        if self._inside:
            assert [name for name, _ in attrs] == ["href"]
            self.targets.add(attrs[0][1] or "")

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.texts.add(data)


def file(length: int) -> File:
    return File(length, length, TIME)


def test_hostile_names_are_text_everywhere() -> None:
    below = f"{POINT}/files"
    served = Served(
        {below: Folder(TIME), **{f"{below}/{name}": file(1) for name in HOSTILE}},
        {f"{below}/{name}": bytes([number]) for number, name in enumerate(HOSTILE)},
    )
    page = served.ask("GET", f"/{below}/")
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'")
    text = page.body.decode()
    assert "<script" not in text
    assert "<img" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    members = served.ask("PROPFIND", f"/{below}", depth="1").members()
    assert len(members) == len(HOSTILE) + 1
    links = Links()
    links.feed(text)
    shown_names = {shown(name) for name in HOSTILE}
    assert links.texts == {"..", *(visible(name) for name in shown_names)}
    assert {unquote(href) for href in links.targets} == {f"/{POINT}/", *(f"/{below}/{name}" for name in shown_names)}
    assert {properties["displayname"] for properties in members.values()} == {"files", *shown_names}
    assert {unquote(href) for href in members} == {f"/{below}/", *(f"/{below}/{name}" for name in shown_names)}
    for number, name in enumerate(HOSTILE):
        assert served.ask("GET", f"/{below}/{shown(name)}").body == bytes([number])


def test_ranges() -> None:
    content = bytes(range(256))
    path = f"{POINT}/disk"
    served = Served({path: Folder(TIME), f"{path}/vda.raw": file(256)}, {f"{path}/vda.raw": content})
    whole = served.ask("GET", f"/{path}/vda.raw")
    assert (whole.status, whole.body) == (200, content)
    for asked, expected in (
        ("bytes=10-19", content[10:20]),
        ("bytes=250-", content[250:]),
        ("bytes=-3", content[-3:]),
        ("bytes=200-999", content[200:]),
    ):
        part = served.ask("GET", f"/{path}/vda.raw", range=asked)
        assert (part.status, part.body) == (206, expected)
        assert part.headers["ETag"] == whole.headers["ETag"]
    assert served.ask("GET", f"/{path}/vda.raw", range="bytes=10-19").headers["Content-Range"] == "bytes 10-19/256"
    for date in ("Wed, 18 Nov 20266 11:06:40", "yesterday"):
        assert served.ask("GET", f"/{path}/vda.raw", if_modified_since=date, if_unmodified_since=date).status == 200
        assert served.ask("GET", f"/{path}/vda.raw", range="bytes=0-9", if_range=date).body == content
    for ignored in ("bytes=1-2,5-6", "bytes=-0", "blocks=1-2", "bytes=b-c", "bytes=-"):
        assert served.ask("GET", f"/{path}/vda.raw", range=ignored).status == 200
    assert served.ask("GET", f"/{path}/vda.raw", range="bytes=256-").status == 416
    assert served.ask("GET", f"/{path}/vda.raw", range="bytes=0-9", if_range='"another"').body == content
    assert served.ask("GET", f"/{path}/vda.raw", range="bytes=0-9", if_range=whole.headers["ETag"]).body == content[:10]
    assert served.ask("GET", f"/{path}/vda.raw", if_none_match=whole.headers["ETag"]).status == 304
    (listed,) = served.ask("PROPFIND", f"/{path}/vda.raw", depth="0").members().values()
    assert listed["getetag"] == whole.headers["ETag"]
    head = served.ask("HEAD", f"/{path}/vda.raw")
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", "256")
    assert head.headers["Last-Modified"] == "Wed, 18 Nov 2026 11:06:40 GMT"
    assert served.folders.opened == 0


def test_what_cannot_be_read_is_no_short_file() -> None:
    big = 3 << 18
    path = f"{POINT}/disk"
    there: dict[str, Node | Exception] = {path: Folder(TIME), f"{path}/a": file(big), f"{path}/b": file(big)}
    served = Served(
        {**there, f"{path}/c": Damaged("its entry")}, {f"{path}/a": bytes(big - 1), f"{path}/b": Damaged("its content")}
    )
    with pytest.raises(Failure):
        served.ask("GET", f"/{path}/a")
    beginning = served.ask("GET", f"/{path}/b")
    assert (beginning.status, beginning.body) == (500, b"its content\n")
    members = served.ask("PROPFIND", f"/{path}/", depth="1").members()
    assert members[f"/{quote(path)}/a"]["getcontentlength"] == str(big)
    assert "getcontentlength" not in members[f"/{quote(path)}/c"]
    assert b"cannot be read" in served.ask("GET", f"/{path}/").body
    assert served.ask("GET", f"/{path}/c").status == 500
    assert served.ask("HEAD", f"/{path}/c").body == b""
    assert served.said == [
        f"/{path}/a: block at {big - 1}",
        f"/{path}/b: its content",
        f"/{path}/c: its entry",
    ], "each once"
    assert served.folders.opened == 0


def test_when_the_share_ends_so_does_what_is_read() -> None:
    served = Served({"web1/a": file(1)}, {"web1/a": b"a"})
    served.ended.set()
    assert served.ask("GET", "/web1/a").status == 503
    assert served.said == []


def test_when_the_share_ends_nothing_more_is_listed() -> None:
    served = Served({f"web1/{name}": file(1) for name in "abcd"})
    served.ended.set()
    for method in ("GET", "PROPFIND"):
        assert served.ask(method, "/web1/", depth="1").status == 503
    served.folders.there["web1"] = Damaged("what was read ends, too")
    assert served.ask("GET", "/web1/").status == 500
    assert served.said == []


def test_only_what_reads_is_answered() -> None:
    served = Served({"web1/a": file(1)})
    for method in ("PUT", "DELETE", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK", "PROPPATCH", "POST", "TRACE", "BREW"):
        refused = served.ask(method, "/web1/a")
        assert (refused.status, refused.headers["Allow"]) == (405, "OPTIONS, GET, HEAD, PROPFIND")
    allowed = served.ask("OPTIONS", "/web1/a")
    assert (allowed.status, allowed.headers["DAV"]) == (200, "1")
    for depth in ({}, {"depth": "infinity"}, {"depth": "Infinity"}, {"depth": "7"}):
        refused = served.ask("PROPFIND", "/", **depth)
        assert refused.status == 403
        assert b"<propfind-finite-depth/>" in refused.body
    assert list(served.ask("PROPFIND", "/web1/a", depth="0").members()) == ["/web1/a"]
    for missing in ("/web2", "/web1/b", "/web1/a/b", "/web1/%2e%2e", "/web1/%2F"):
        for method in ("GET", "HEAD", "PROPFIND"):
            assert served.ask(method, missing, depth="0").status == 404
    assert served.ask("GET", "/../etc").status == 400
    assert served.ask("OPTIONS", "*").status == 200
    assert served.said == []


def test_words_for_moments_stay_what_they_mean_while_they_are_used() -> None:
    newer = "web1/@2026-11-18_12.00.00Z"
    points: dict[str, Node | Exception] = {newer: Folder(TIME), f"{POINT}/a": file(1), f"{newer}/a": file(2)}
    served = Served({**points, "web1/@latest": Link(POINT.removeprefix("web1/"), TIME)})
    assert "/web1/%40latest/" in served.ask("PROPFIND", "/web1", depth="1").members()
    assert served.tree.find("web1/@latest/a").path == (*POINT.split("/"), "a")
    served.folders.there["web1/@latest"] = Link(newer.removeprefix("web1/"), TIME)
    for _ in range(3):
        served.now += PINNED_S - 1
        assert served.ask("HEAD", "/web1/@latest/a").headers["Content-Length"] == "1"
    served.now += PINNED_S
    assert served.ask("HEAD", "/web1/@latest/a").headers["Content-Length"] == "2"
    served.folders.there["web1/@latest"] = Link(POINT.removeprefix("web1/"), TIME)
    begun = served.now
    while served.ask("HEAD", "/web1/@latest/a").headers["Content-Length"] == "2":
        served.now += PINNED_S / 2
    assert served.now - begun == LONGEST_PINNED_S


def test_links_of_a_guest() -> None:
    root = f"{POINT}/files"
    served = Served(
        {
            root: Folder(TIME),
            f"{root}/usr": Folder(TIME),
            f"{root}/usr/bin": Folder(TIME),
            f"{root}/usr/bin/sh": file(3),
            f"{root}/bin": Link("usr/bin", TIME),
            f"{root}/usr/bin/bash": Link("sh", TIME),
            f"{root}/usr/bin/X11": Link(".", TIME),
            f"{root}/usr/up": Link("../usr/bin/./sh", TIME),
            f"{root}/lost": Link("nowhere", TIME),
            f"{root}/round": Link("round", TIME),
            f"{root}/out": Link("../../../../../x", TIME),
        }
    )
    listed = served.ask("PROPFIND", f"/{root}/", depth="1").members()
    assert sorted(listed) == [f"/{quote(root)}/", f"/{quote(root)}/usr/"]
    listed = served.ask("PROPFIND", f"/{root}/bin/", depth="1").members()
    assert {name.rpartition("/")[2]: one.get("getcontentlength") for name, one in listed.items()} == {
        "": None,
        "sh": "3",
        "bash": "3",
    }
    for path in ("bin/sh", "bin/X11/X11/bash", "usr/up", "usr/bin/X11/sh"):
        found = served.ask("HEAD", f"/{root}/{path}")
        assert (found.status, found.headers["Content-Length"]) == (200, "3")
    for path in ("lost", "round", "out", "bin/" + 50 * "X11/" + "sh"):
        assert served.ask("HEAD", f"/{root}/{path}").status == 404


def test_a_folder_that_has_too_much_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_of_a_share, "MOST_LISTED", 2)
    served = Served({f"web1/{name}": file(1) for name in "abc"})
    assert served.ask("PROPFIND", "/web1", depth="1").status == 500
    assert served.said == ["/web1: web1 has 4 names; at most 2 can be listed here."]
    assert served.ask("HEAD", "/web1/a").status == 200


class Turns:
    """Stands for the semaphore: how it is used, and what was looked at before."""

    def __init__(self, folders: MemoryFolders) -> None:
        self.used: list[str] = []
        self._folders = folders

    def __enter__(self) -> None:
        self.used.append(f"entered after {self._folders.looked}")
        self._folders.looked = 0

    def __exit__(self, *_exception: object) -> None:
        self.used.append(f"left after {self._folders.looked}")


def test_large_folders_are_described_few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a page, too; and their turn begins before anything in them is looked at, and ends before it is sent."""
    monkeypatch.setattr(resources, "_LARGE", 3)
    served = Served({f"web1/{name}": file(1) for name in "abcd"})
    for method, depth in (("GET", "0"), ("PROPFIND", "1")):
        turns = Turns(served.folders)
        monkeypatch.setattr(served.shared, "large", turns)
        served.folders.looked = 0
        assert served.ask(method, "/web1/", depth=depth).status in (200, 207)
        assert turns.used == ["entered after 1", "left after 5"]


def test_times_that_http_cannot_write() -> None:
    times = {"early": -(2**62), "late": 2**62, "ours": TIME, "windows": -11_644_473_600 * 10**9}
    served = Served(
        {f"web1/{name}": File(1, 1, time) for name, time in times.items()}, dict.fromkeys([f"web1/{n}" for n in times], b"x")
    )
    listed = served.ask("PROPFIND", "/web1/", depth="1").members()
    assert listed["/web1/windows"]["getlastmodified"] == "Mon, 01 Jan 1601 00:00:00 GMT"
    for name in times:
        assert served.ask("GET", f"/web1/{name}").status == 200
    assert served.ask("GET", "/web1/").status == 200
