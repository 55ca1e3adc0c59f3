# SPDX-License-Identifier: AGPL-3.0-or-later
"""Names as a share shows them: each leads back, none is one that Windows or XML cannot have, none hides another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from everywhen.interfaces.webdav.names import meant, shown, shown_together

FORBIDDEN = set('"*:<>?\\|') | {chr(code) for code in range(32)} | {"\x7f", "\u202e", "\u2066", "\ufffe", "\uffff"}
DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$", "com1", "lpt9", "com\u00b9"}
ODD = [
    "%",
    "%4",
    "%41",
    "%3A",
    ":",
    ".",
    " ",
    "con",
    "NUL.txt",
    "a",
    "A",
    "\udce9",
    "\ud83d",
    "\udced\udca0\udc80",
    "\u202e",
    "\u00e9",
    "\u00c9",
    "\u0130",
    "\u212a",
]
NAMES = st.one_of(
    st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=12),
    st.lists(st.sampled_from(ODD), min_size=1, max_size=5).map("".join),
)


@given(NAMES)
def test_a_name_leads_back(name: str) -> None:
    for letters in (0, 1, len(name)):
        text = shown(name, letters)
        assert meant(text) == name
        assert not set(text) & FORBIDDEN
        assert text[-1] not in ". "
        assert text.partition(".")[0].rstrip(" ").casefold() not in DEVICES
        text.encode()  # no surrogates


@given(st.lists(NAMES, max_size=20))
def test_no_two_differ_only_in_case(names: list[str]) -> None:
    found = shown_together(names)
    assert set(found) == set(names)
    assert len({text.casefold() for text in found.values()}) == len(found)
    assert {meant(text): text for text in found.values()} == found
