# SPDX-License-Identifier: AGPL-3.0-or-later
"""The share as a WSGI application: who asks, then wsgidav, and whatever goes wrong as an answer.

None of wsgidav's own middleware is used. Its error page is put behind what was sent of a file already; here a file of which
something cannot be read ends before its length, with its connection, and a line is said where the command runs.

Whatever is answered goes to browsers, too: nothing that a guest has written is run, shown in place, or kept by others.
Source: PEP 3333 (WSGI).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from http import HTTPStatus

from wsgidav.dav_error import DAVError
from wsgidav.request_resolver import RequestResolver
from wsgidav.wsgidav_app import WsgiDAVApp

from everywhen.interfaces.said_once import SaidOnce
from everywhen.interfaces.webdav.asked import prepare
from everywhen.interfaces.webdav.gate import Gate, Refused
from everywhen.interfaces.webdav.resources import UNDO, Environ, Shared, StartResponse
from everywhen.services.failures import Busy, Failure, Interrupted, NotFound, WrongUsage

_BLOCK = 1 << 18
"""Bytes of a file that are read, and wait to be sent, at once."""
_ALWAYS = [
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; sandbox allow-downloads"),
    ("Cache-Control", "private, no-cache"),
]
_FINITE_DEPTH = '<?xml version="1.0" encoding="utf-8"?>\n<error xmlns="DAV:"><propfind-finite-depth/></error>\n'
_METHODS = "OPTIONS, GET, HEAD, PROPFIND"

_TEXT, _XML = "text/plain; charset=utf-8", "application/xml; charset=utf-8"


class Share:
    """A WSGI application. Safe to use from several threads."""

    def __init__(self, shared: Shared, gate: Gate, say: Callable[[str], None]) -> None:
        """`say` is told, a line each, what could not be read, and why."""
        logger = logging.getLogger("wsgidav")
        logger.addHandler(logging.NullHandler())  # else what it thinks of clients goes to standard error
        logger.propagate = False
        self._dav = WsgiDAVApp(
            {
                "provider_mapping": {"/": shared},
                "middleware_stack": [RequestResolver],
                "lock_storage": None,
                "property_manager": None,
                "logging": {"enable": False},
                "verbose": 0,
                "block_size": _BLOCK,
            }
        )
        self._gate = gate
        self._say = SaidOnce(say)
        self._ended = shared.ended

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        """Answer one request. Raises Failure, which was said, where an answer that has begun cannot be ended."""
        answer = _Answer(environ["REQUEST_METHOD"] == "HEAD")
        with closing(self._answered(environ, answer)) as body:
            try:
                first = next(body, b"")
            except Refused as refused:
                first = answer.instead(refused.status, refused.headers, *_words(refused.status))
            except DAVError as error:
                status = HTTPStatus(error.value)
                allowed = [("Allow", _METHODS)] if status == HTTPStatus.METHOD_NOT_ALLOWED else []
                first = answer.instead(status, [*(error.add_headers or []), *allowed], *_words(status))
            except Failure as failure:
                self._tell(environ, failure)
                first = answer.instead(_status(failure), [], f"{failure.what} {failure.safe}".strip())
            start_response(answer.status, answer.headers + _ALWAYS)
            yield first
            try:
                yield from body
            except Failure as failure:
                self._tell(environ, failure)
                raise

    def _answered(self, environ: Environ, answer: _Answer) -> Generator[bytes, None, None]:
        """What wsgidav answers those who may ask. Raises Refused, DAVError, Failure."""
        try:
            environ["wsgidav.auth.user_name"] = self._gate.enter(environ)
        except Failure as failure:  # of the file of accounts, which is not for those who have none to know
            self._tell(environ, failure)
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE) from failure
        prepare(environ)
        if environ["REQUEST_METHOD"] != "PROPFIND":
            yield from self._dav(environ, answer)
            return
        with ExitStack() as undo:
            environ[UNDO] = undo
            described = b"".join(self._dav(environ, answer))
        yield described

    def _tell(self, environ: Environ, failure: Failure) -> None:
        if not self._ended.is_set() and not isinstance(failure, Interrupted):  # it was we who ended it then
            self._say(f"{environ['PATH_INFO']}: {failure.what}")


class _Answer:
    """How an answer begins: first kept, so that it can still be another one. Is a `start_response`."""

    def __init__(self, without_body: bool) -> None:
        self.status = "500 Internal Server Error"
        self.headers: list[tuple[str, str]] = []
        self._without_body = without_body

    def __call__(self, status: str, headers: list[tuple[str, str]], _exc_info: object = None) -> None:
        self.status, self.headers = status, headers

    def instead(self, status: HTTPStatus, headers: list[tuple[str, str]], text: str, kind: str = _TEXT) -> bytes:
        """Another answer; its body."""
        body = b"" if status == HTTPStatus.NOT_MODIFIED else f"{text}\n".encode("utf-8", "backslashreplace")
        length = [] if status == HTTPStatus.NOT_MODIFIED else [("Content-Type", kind), ("Content-Length", str(len(body)))]
        self(f"{status.value} {status.phrase}", [*headers, *length])
        return b"" if self._without_body else body


def _words(status: HTTPStatus) -> tuple[str, str]:
    """What an answer says that is no more than its status."""
    return (_FINITE_DEPTH, _XML) if status == HTTPStatus.FORBIDDEN else (status.phrase, _TEXT)


def _status(failure: Failure) -> HTTPStatus:
    match failure:
        case NotFound() | WrongUsage():
            return HTTPStatus.NOT_FOUND
        case Busy() | Interrupted():
            return HTTPStatus.SERVICE_UNAVAILABLE
    return HTTPStatus.INTERNAL_SERVER_ERROR
