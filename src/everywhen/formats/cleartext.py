# SPDX-License-Identifier: AGPL-3.0-or-later
"""Objects that must be readable before any key is there (superblock, key slots): JSON that a person can read as well.

Canonical: sorted keys, indented by one blank, ASCII, one newline at the end, at most 64 KiB; any other spelling of the
same value is refused, so that equal values are equal bytes. Every such object has these fields:

| field | type | meaning |
|---|---|---|
| magic | text | which layout this is |
| format | whole | its version; checked before anything else is looked at |
| check | 32 hex | first 16 bytes of BLAKE3 over the canonical form without this field |

`check` finds damage before a passphrase has been tried, so that a flipped bit is not called a wrong passphrase. It is no
protection against forgery: that is the superblock's `mac` and the tag in a key slot.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from blake3 import blake3

from everywhen.formats.errors import BadMagic, Corrupt, Truncated, UnsupportedVersion
from everywhen.formats.fields import Json, parse_json, text

MAX_CLEARTEXT = 64 << 10
"""Bytes. A superblock has about 500, a slot about 800 and 150 more per key generation."""

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)


def canonical(document: Mapping[str, Any]) -> bytes:
    """The one spelling of `document`."""
    return json.dumps(document, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False).encode("ascii") + b"\n"


def encode_checked(document: Mapping[str, Any]) -> bytes:
    """`document` with its `check`. Raises ValueError when it would be too large to be read again."""
    raw = canonical({**document, "check": _check(document)})
    if len(raw) > MAX_CLEARTEXT:
        raise ValueError(f"an object of {len(raw)} bytes could not be read again (limit {MAX_CLEARTEXT})")
    return raw


def decode_checked(what: str, raw: bytes, magic: str, version: int, *, newer: str) -> Json:
    """The fields of `raw` without `check`, which was right. `what` names the object in errors.

    Raises BadMagic, Truncated, Corrupt, or UnsupportedVersion with the text `newer` (`{format}` in it is filled in).
    """
    if len(raw) > MAX_CLEARTEXT:
        raise Corrupt(f"{what} has {len(raw)} bytes, more than the {MAX_CLEARTEXT} that are possible")
    if not raw:
        raise Truncated(f"{what} is empty")
    if not raw.startswith(b"{"):
        raise BadMagic(f"{what} is not JSON")
    if not raw.endswith(b"}\n"):
        raise Truncated(f"{what} ends in the middle, after {len(raw)} bytes")
    document = parse_json(what, raw)
    if document.get("magic") != magic:
        raise BadMagic(f"{what} is JSON, but not {magic!r}")
    found = document.get("format")
    if type(found) is not int or found < 1:
        raise Corrupt(f"{what} has an impossible format")
    if found != version:
        raise UnsupportedVersion(newer.format(format=found))
    document.pop("check", None)
    try:
        right = encode_checked(document) == raw
    except (ValueError, RecursionError):  # NaN, or nested deeper than can be written
        right = False
    if not right:
        raise Corrupt(f"{what} was changed or damaged: its checksum is wrong")
    return document


def _check(document: Mapping[str, Any]) -> str:
    return blake3(canonical(document)).hexdigest(16)


def rfc3339(time_ns: int) -> str:
    """Nanoseconds since 1970 as `2026-11-21T10:32:05Z`; the fraction is dropped."""
    return datetime.fromtimestamp(time_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def time_field(source: Mapping[str, Any], key: str) -> str:
    """A field with a time as `rfc3339` writes it. Raises Corrupt."""
    value = text(source, key)
    if not _TIME.fullmatch(value):
        raise Corrupt(f"field {key!r} is not a time in UTC")
    return value
