# SPDX-License-Identifier: AGPL-3.0-or-later
"""Who gets in: by login and password with each request (HTTP Basic, RFC 7617), where the share has accounts.

Without accounts everybody who reaches the server is let in. If that is this machine's loopback alone, a page from elsewhere
must not get in by way of a browser here: its own host's name may lead to this address. So the name that was asked for has
to be one of this machine.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import math
from collections.abc import Callable, Mapping
from http import HTTPStatus

from everywhen.interfaces.webdav.accounts import Accounts
from everywhen.interfaces.webdav.attempts import FREE, Attempts


class Refused(Exception):
    """A request that is answered with this HTTP status, and perhaps a header."""

    def __init__(self, status: HTTPStatus, *headers: tuple[str, str]) -> None:
        super().__init__(status.phrase)
        self.status = status
        self.headers = list(headers)


class Gate:
    """Safe to use from several threads."""

    def __init__(self, accounts: Accounts | None, attempts: Attempts, *, by_name: bool, say: Callable[[str], None]) -> None:
        """`by_name`: any name of the server's will do. `say` is told of addresses from which too many logins fail."""
        self._accounts = accounts
        self._attempts = attempts
        self._by_name = by_name
        self._say = say

    def enter(self, environ: Mapping[str, str]) -> str:
        """The account that a request belongs to; '' where there are none. Raises Refused, and what `Accounts` does."""
        if not self._by_name and not _is_here(environ.get("HTTP_HOST", "")):
            raise Refused(HTTPStatus.MISDIRECTED_REQUEST)
        if self._accounts is None:
            return ""
        address = environ.get("REMOTE_ADDR", "")
        if (wait := self._attempts.wait_s(address)) > 0:
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, ("Retry-After", str(math.ceil(wait))))
        given = _given(environ.get("HTTP_AUTHORIZATION", ""))
        if given is None:
            raise _unknown()
        name, password = given
        if self._accounts.known(name, password):
            return name
        if not self._accounts.verify(name, password):
            wait = self._attempts.failed(address)
            if wait:
                self._say(
                    f"{address}: more than {FREE - 1} wrong logins, the last one as {name[:64]}; {wait:.0f} s until the next."
                )
            raise _unknown()
        self._attempts.succeeded(address)
        return name


def _unknown() -> Refused:
    return Refused(HTTPStatus.UNAUTHORIZED, ("WWW-Authenticate", 'Basic realm="Everywhen", charset="UTF-8"'))


def _given(header: str) -> tuple[str, str] | None:
    """Name and password as a client sends them; None where it sends none that can be understood."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        raw = base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")  # what older clients have made of it
    name, colon, password = text.partition(":")
    return (name, password) if colon else None


def _is_here(host: str) -> bool:
    """Whether a Host header names this machine's loopback."""
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    name = name.removeprefix("[").removesuffix("]").lower()
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
