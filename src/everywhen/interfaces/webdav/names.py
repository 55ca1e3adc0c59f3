# SPDX-License-Identifier: AGPL-3.0-or-later
"""Names of a guest's as every client of a share can show them, and back again (ux R21).

What Windows forbids, what XML cannot hold, bytes that are no text, and characters that make text run backwards are written
as `%` and two hexadecimal digits for each byte, as in an address: `a:b` is `a%3Ab`. Of names that differ only in case, all but
the first one (by code points) have letters written so: `README` and `%72eadme`. A `%` that could be taken for such a code is
`%25`. So what a name stands for follows from itself: no listing has to be kept, and any other client may decode it.

Bytes are UTF-8. A byte that is no text (surrogateescape, PEP 383) stands for itself; half of a UTF-16 pair, which NTFS
allows, is written as if UTF-8 had it (surrogatepass).
Sources: Microsoft, "Naming Files, Paths, and Namespaces"; XML 1.0, 2.2 Char.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_SUBSTITUTED = re.compile(
    '[\x00-\x1f\x7f"*:<>?\\\\|]'  # Windows; XML has no controls
    "|[\u2028-\u202e\u2066-\u2069]"  # breaks of lines, and what turns the direction of text
    "|[\ud800-\udfff\ufffe\uffff]"  # not in XML
    "|%(?=[0-9A-Fa-f]{2})"
    r"|[. ]$"
)
_DEVICE = re.compile(r"(?i:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9\u00b9\u00b2\u00b3])(?= *(?:\.|$))")
"""What Windows takes for a device, whatever follows after a dot."""
_CODE = re.compile(rb"%([0-9A-Fa-f]{2})")
_LETTERS = (1, 2, 3)
"""So many letters of a name are tried before all are: a hostile folder may have thousands that differ only in case."""


def shown(name: str, letters: int = 0) -> str:
    """The name as a share shows it; the first so many `letters` that have another case are written as codes, too."""
    places = {match.start() for match in _SUBSTITUTED.finditer(name)}
    if _DEVICE.match(name):
        places.add(0)
    if letters:
        cased = [place for place, char in enumerate(name) if char != char.casefold() or char != char.upper()]
        places.update(cased[:letters])
    if not places:
        return name
    try:
        written = _written(name, places, "surrogateescape")
    except UnicodeEncodeError:
        return _written(name, places, "surrogatepass")
    return written if meant(written) == name else _written(name, places, "surrogatepass")


def shown_together(names: Iterable[str]) -> dict[str, str]:
    """The names of one folder as a share shows them, each by the guest's own; no two differ only in case."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in sorted(set(names)):
        tried = (shown(name, letters) for letters in (0, *_LETTERS, len(name)))
        found[name] = next(text for text in tried if text.casefold() not in taken)
        taken.add(found[name].casefold())
    return found


def meant(text: str) -> str:
    """The name that stands behind what a share shows. It may be anything, also `..` or a path: whoever uses it must look."""
    raw = _CODE.sub(lambda code: bytes([int(code[1], 16)]), text.encode("utf-8", "surrogatepass"))
    try:
        return raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return raw.decode("utf-8", "surrogateescape")


def _written(name: str, places: set[int], errors: str) -> str:
    """The name with the characters at these places as codes. Raises UnicodeEncodeError."""
    return "".join(
        "".join(f"%{byte:02X}" for byte in char.encode("utf-8", errors)) if place in places else char
        for place, char in enumerate(name)
    )
