# SPDX-License-Identifier: AGPL-3.0-or-later
"""Two versions of one text, line by line; what is no text, or too long, is said to be so."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from everywhen.guest.tree import Content

MOST_BYTES = 1 << 20
MOST_LINES = 20_000
"""Comparing takes time with the square of what differs: 20,000 lines of which all differ take some seconds; made for it (each
some hundred times, in another order), most of a minute."""


@dataclass(frozen=True, slots=True)
class TextDifference:
    """`lines` of a unified diff, without line ends; or `why` there are none: the contents are no texts, or too long."""

    equal: bool
    lines: list[str]
    why: str = ""


def text_difference(before: Content | None, after: Content | None, names: tuple[str, str]) -> TextDifference:
    """Of two contents; None counts as empty. Raises GuestError, and what disks raise."""
    if max(content.size if content else 0 for content in (before, after)) > MOST_BYTES:
        return TextDifference(equal=False, lines=[], why=f"more than {MOST_BYTES >> 20} MiB")
    old, new = (content.read(0, content.size) if content else b"" for content in (before, after))
    if old == new:
        return TextDifference(equal=True, lines=[])
    text, other = _decoded(old), _decoded(new)
    if text is None or other is None:
        first = next((at for at, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
        return TextDifference(equal=False, lines=[], why=f"no text; the first byte that differs is {first:,}")
    lines = text.splitlines(), other.splitlines()
    if max(map(len, lines)) > MOST_LINES:
        return TextDifference(equal=False, lines=[], why=f"more than {MOST_LINES:,} lines")
    found = list(difflib.unified_diff(lines[0], lines[1], *names, lineterm=""))
    return TextDifference(equal=False, lines=found, why="" if found else "only the ends of lines, or the encoding, differ")


def _decoded(content: bytes) -> str | None:
    """As UTF-8, or UTF-16 with its mark as Windows writes it; None for what is no text."""
    try:
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return content.decode("utf-16")
        return None if b"\0" in content else content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
