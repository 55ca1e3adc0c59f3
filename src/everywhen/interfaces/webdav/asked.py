# SPDX-License-Identifier: AGPL-3.0-or-later
"""Requests as wsgidav answers them rightly: what it would stumble over is refused here, or left away where HTTP wants that.

Sources: RFC 9110, 13.1 (dates that are none), 14.2 (ranges); RFC 4918, 9.1 (depth).
"""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

from everywhen.interfaces.webdav.gate import Refused

_ONE_RANGE = re.compile(r"\s*bytes\s*=\s*(?:\d{1,20}-\d{0,20}|-0*[1-9]\d{0,19})\s*", re.ASCII)


def prepare(environ: dict[str, Any]) -> None:
    """Make one of a request that came, as PEP 3333 has it. Raises Refused."""
    try:
        path = environ["PATH_INFO"].encode("latin-1").decode("utf-8")
    except UnicodeError as error:
        raise Refused(HTTPStatus.NOT_FOUND) from error
    if path == "*":
        environ["PATH_INFO"] = "/"
    elif not path.startswith("/") or ".." in path.split("/"):  # its answer to these is none
        raise Refused(HTTPStatus.BAD_REQUEST)
    if environ["REQUEST_METHOD"] == "PROPFIND" and environ.get("HTTP_DEPTH", "infinity").lower() not in ("0", "1"):
        raise Refused(HTTPStatus.FORBIDDEN)
    if not _ONE_RANGE.fullmatch(environ.get("HTTP_RANGE", "")):
        environ.pop("HTTP_RANGE", None)  # of several it would give one; the whole is right, too
    for header in ("HTTP_IF_MODIFIED_SINCE", "HTTP_IF_UNMODIFIED_SINCE"):
        if not _is_date(environ.get(header, "")):
            environ.pop(header, None)
    condition = environ.get("HTTP_IF_RANGE", '"')
    if '"' not in condition and not _is_date(condition):
        environ.pop("HTTP_RANGE", None)


def _is_date(text: str) -> bool:
    try:
        return 0 < parsedate_to_datetime(text).year < 10_000
    except (ValueError, OverflowError, TypeError, IndexError):
        return False
