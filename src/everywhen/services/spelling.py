# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which known word somebody meant who typed another one: errors name the nearest right thing (ux 4.4)."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_TRIED = 2_000
"""difflib compares about 50,000 pairs of short words a second: a hint is not worth more than some 40 ms."""


def nearest(word: str, known: Iterable[str], *, limit: int = 1) -> list[str]:
    """At most `limit` of the `known` words that look like `word`, best first; none when none is near."""
    if len(word) > 100:
        return []
    plain: dict[str, str] = {}
    for candidate in known:
        if len(plain) == _TRIED:
            break
        plain.setdefault(candidate.casefold(), candidate)
    return [plain[match] for match in get_close_matches(word.casefold(), plain, n=limit, cutoff=0.6)]
