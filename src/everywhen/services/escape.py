# SPDX-License-Identifier: AGPL-3.0-or-later
"""Names from guests and hosts, made harmless for a terminal (ux R13).

A file name may hold escape sequences that clear the screen, line breaks that forge a line of output, or bidi characters
that show `exe.txt` for `txt.exe`. Whatever steers a terminal or cannot be seen is written as its code: `\\x1b`, `\\u202e`.
Sources: Unicode categories Cc (control), Cf (format: bidi, zero width, tags), Cs (surrogates), Zl and Zp (separators).

Not reversible on purpose (a backslash stays one backslash, so Windows paths stay readable); raw names come with `-0`.
"""

from __future__ import annotations

import unicodedata

_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def visible(text: str) -> str:
    """`text` on one line, with control, bidi and other invisible characters as codes; bytes that were no text as `\\xNN`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_code(char) if unicodedata.category(char) in _UNSEEN else char for char in text)


def visible_text(text: str) -> str:
    """The same of a text that may have several lines: line ends and tabs stay what they are."""
    return "\n".join("\t".join(map(visible, line.split("\t"))) for line in text.split("\n"))


def _code(char: str) -> str:
    number = ord(char)
    if 0xDC80 <= number <= 0xDCFF:  # a byte that is not UTF-8 (PEP 383)
        number -= 0xDC00
    if number <= 0xFF:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number <= 0xFFFF else f"\\U{number:08x}"
