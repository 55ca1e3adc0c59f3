# SPDX-License-Identifier: AGPL-3.0-or-later
"""Typed fields out of decoded JSON: whatever is missing or of another type is `Corrupt`, with the field's name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from everywhen.formats.errors import Corrupt

Json: TypeAlias = dict[str, Any]


def canonical_json(value: Mapping[str, Any]) -> bytes:
    """One spelling per value: sorted keys, no blanks, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def parse_json(what: str, data: bytes) -> Json:
    """The JSON object in `data`; `what` names it in errors."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{what} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Corrupt(f"{what} is not a JSON object")
    return value


def text(source: Mapping[str, Any], key: str, default: str | None = None) -> str:
    """A string field."""
    value = source.get(key, default)
    if not isinstance(value, str):
        raise Corrupt(f"field {key!r} is not text")
    return value


def optional_text(source: Mapping[str, Any], key: str) -> str | None:
    """A string field that may be absent or null."""
    return None if source.get(key) is None else text(source, key)


def whole(source: Mapping[str, Any], key: str, default: int | None = None, *, most: int = 1 << 63) -> int:
    """A whole number from 0 to `most`."""
    value = source.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise Corrupt(f"field {key!r} is not a whole number from 0 to {most}")
    return value


def flag(source: Mapping[str, Any], key: str, default: bool | None = None) -> bool:
    """True or false."""
    value = source.get(key, default)
    if not isinstance(value, bool):
        raise Corrupt(f"field {key!r} is neither true nor false")
    return value


def hexbytes(source: Mapping[str, Any], key: str, size: int) -> bytes:
    """`size` bytes written in hex."""
    try:
        value = bytes.fromhex(text(source, key))
    except ValueError as error:
        raise Corrupt(f"field {key!r} is not hex") from error
    if len(value) != size:
        raise Corrupt(f"field {key!r} has {len(value)} bytes, not {size}")
    return value


def optional_hexbytes(source: Mapping[str, Any], key: str, size: int) -> bytes | None:
    """`size` bytes written in hex, or null."""
    return None if source.get(key) is None else hexbytes(source, key, size)


def mapping(source: Mapping[str, Any], key: str) -> Json:
    """An object field; absent means empty."""
    value = source.get(key, {})
    if not isinstance(value, dict):
        raise Corrupt(f"field {key!r} is not an object")
    return value


def objects(source: Mapping[str, Any], key: str) -> list[Json]:
    """A list of objects; absent means empty."""
    value = source.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Corrupt(f"field {key!r} is not a list of objects")
    return value


def texts(source: Mapping[str, Any], key: str) -> list[str]:
    """A list of strings; absent means empty."""
    value = source.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise Corrupt(f"field {key!r} is not a list of texts")
    return value
