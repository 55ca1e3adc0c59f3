# SPDX-License-Identifier: AGPL-3.0-or-later
"""What wsgidav asks of a tree (`wsgidav.dav_provider`): translations to `SharedTree`.

Files are bytes to every client (`application/octet-stream`): what a guest has written is not for a browser to interpret.
A file's ETag says which moment, path and size it is, and which program made it: the same at each start, another one when
what is read could be another one.
Source: RFC 4918 (WebDAV), 15 (properties).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from hashlib import blake2b
from typing import Any

from wsgidav.dav_provider import DAVCollection, DAVNonCollection, DAVProvider

from everywhen import __version__
from everywhen.interfaces.webdav.page import page
from everywhen.interfaces.webdav.tree import Found, SharedTree, Unreadable
from everywhen.services.ages import SECOND
from everywhen.services.failures import Failed, Interrupted, NotFound, WrongUsage
from everywhen.services.translation import failing
from everywhen.services.view.nodes import File, OpenFile

Environ = dict[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], object]
Handler = Callable[[Environ, StartResponse], Iterable[bytes]]

UNDO = "everywhen.undo"
"""In a request's environment: an ExitStack for what has to be given back when its answer is made."""
_LARGE = 5000
"""Names in a folder; to describe one of 100,000 takes 300 MB."""
_LARGE_AT_ONCE = 2
_FIRST_S, _LAST_S = -62_135_596_800, 253_402_300_799
"""Years 1 to 9999: others cannot be written as HTTP has them."""


class Shared(DAVProvider):  # type: ignore[misc]  # wsgidav has no types
    """All of a tree, read only."""

    def __init__(self, tree: SharedTree, *, identity: str, url: str, ended: threading.Event) -> None:
        """`identity` of the repository, which is in all ETags. When `ended`, nothing more is read."""
        super().__init__()
        self.verbose = 0  # else it prints on standard output
        self.tree = tree
        self.identity = identity
        self.url = url
        self.ended = ended
        self.large = threading.Semaphore(_LARGE_AT_ONCE)

    def is_readonly(self) -> bool:
        """So that nothing else is even looked at."""
        return True

    def get_resource_inst(self, path: str, environ: Environ) -> Folder | OneFile | None:
        """What is at a path; None where nothing is. Raises Failure."""
        try:
            found = self.tree.find(path)
        except (NotFound, WrongUsage):
            return None
        return _resource(path, found, environ)

    def custom_request_handler(
        self, environ: Environ, start_response: StartResponse, default_handler: Handler
    ) -> Iterable[bytes]:
        """A folder that is fetched, as browsers do, is a page."""
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            found = self.get_resource_inst(environ["PATH_INFO"], environ)
            if isinstance(found, Folder):
                with ExitStack() as undo:
                    environ[UNDO] = undo
                    body = page(found.get_href(), found.members())
                start_response("200 OK", [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(body)))])
                return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]
        return default_handler(environ, start_response)


class _Resource:
    """What folders and files have in common."""

    found: Found | Unreadable

    def get_last_modified(self) -> float | None:
        """In seconds since 1970 UTC."""
        if isinstance(self.found, Unreadable):
            return None
        seconds = self.found.node.time_ns // SECOND
        return float(seconds) if _FIRST_S <= seconds <= _LAST_S else None


class Folder(_Resource, DAVCollection):  # type: ignore[misc]
    """A folder."""

    def __init__(self, path: str, found: Found, environ: Environ) -> None:
        super().__init__(path, environ)
        self.found: Found = found

    def get_member_names(self) -> list[str]:
        """Of what is in it."""
        return [name for name, _ in self.members()]

    def get_member_list(self) -> list[Folder | OneFile]:
        """What is in it. Raises Failure."""
        base = self.path.rstrip("/")
        return [_resource(f"{base}/{name}", found, self.environ) for name, found in self.members()]

    def members(self) -> Iterator[tuple[str, Found | Unreadable]]:
        """What is in it, by the names that are shown. Waits for its turn where it is much. Raises Failure."""
        names = self.provider.tree.names(self.found)
        if len(names) > _LARGE:
            self.environ[UNDO].enter_context(self.provider.large)
        return self._described(names)

    def _described(self, names: list[str]) -> Iterator[tuple[str, Found | Unreadable]]:
        for one in self.provider.tree.members(self.found, names):
            if self.provider.ended.is_set():
                raise Interrupted("The share ends.")
            yield one


class OneFile(_Resource, DAVNonCollection):  # type: ignore[misc]
    """A file, or what cannot be read."""

    def __init__(self, path: str, found: Found | Unreadable, environ: Environ) -> None:
        super().__init__(path, environ)
        self.found = found

    def get_content_length(self) -> int | None:
        """In bytes."""
        return self.found.node.length if isinstance(self.found, Found) and isinstance(self.found.node, File) else None

    def get_content_type(self) -> str:
        """The same for all."""
        return "application/octet-stream"

    def get_etag(self) -> str | None:
        """Without quotes."""
        if isinstance(self.found, Unreadable):
            return None
        parts = (self.provider.identity, __version__, *self.found.path, str(self.get_content_length()))
        return blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    def support_etag(self) -> bool:
        """Where it can be read."""
        return isinstance(self.found, Found)

    def support_ranges(self) -> bool:
        """Any part can be asked for."""
        return True

    def get_property_value(self, name: str) -> object:
        """As wsgidav, but an ETag has quotes in a property, too (RFC 4918, 15.6)."""
        value = super().get_property_value(name)
        return f'"{value}"' if name == "{DAV:}getetag" else value

    def finalize_headers(self, _environ: Environ, response_headers: list[tuple[str, str]]) -> None:
        """A browser is to keep it, not to show it."""
        response_headers.append(("Content-Disposition", "attachment"))

    def get_content(self) -> _Content:
        """To read it. Raises Failure."""
        if isinstance(self.found, Unreadable):
            raise self.found.failure
        length = self.get_content_length() or 0
        return _Content(self.provider.tree.open(self.found), length, self.provider.url, self.provider.ended)


class _Content:
    """An open file as wsgidav reads it: from one place on."""

    def __init__(self, file: OpenFile, length: int, url: str, ended: threading.Event) -> None:
        self._file = file
        self._length = length
        self._url = url
        self._ended = ended
        self._offset = 0
        self.close = file.close

    def seek(self, offset: int) -> None:
        """Go on there."""
        self._offset = offset

    def read(self, size: int) -> bytes:
        """The next bytes, none at the end alone. Raises Failure."""
        if self._ended.is_set():
            raise Interrupted("The share ends.")
        with failing(self._url):
            content = self._file.read(self._offset, min(size, self._length - self._offset))
        if not content and self._offset < self._length:
            raise Failed(f"it ends after {self._offset} of {self._length} bytes")
        self._offset += len(content)
        return content


def _resource(path: str, found: Found | Unreadable, environ: Environ) -> Folder | OneFile:
    if isinstance(found, Unreadable) or isinstance(found.node, File):
        return OneFile(path, found, environ)
    return Folder(path, found, environ)
