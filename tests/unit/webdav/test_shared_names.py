# SPDX-License-Identifier: AGPL-3.0-or-later
"""Names as a share shows them, one by one (what holds for all: `tests/property/test_names_leading_back.py`)."""

from __future__ import annotations

import pytest

from everywhen.interfaces.webdav.names import shown, shown_together


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("letter.doc", "letter.doc"),
        ("@2026-11-21_10.32.05Z", "@2026-11-21_10.32.05Z"),
        ("über 100%.txt", "über 100%.txt"),
        (".profile", ".profile"),
        ("a:b", "a%3Ab"),
        ("dot.", "dot%2E"),
        ("blank ", "blank%20"),
        ("nul", "%6Eul"),
        ("Aux.c", "%41ux.c"),
        ("auxiliary", "auxiliary"),
        ("a%3Ab", "a%253Ab"),
        ("caf\udce9", "caf%E9"),
        ("\ud83d", "%ED%A0%BD"),
        ("a\nb", "a%0Ab"),
        ("txt\u202eexe.", "txt%E2%80%AEexe%2E"),
    ],
)
def test_what_some_client_cannot_show_is_written_as_codes(name: str, expected: str) -> None:
    assert shown(name) == expected


def test_of_names_that_differ_only_in_case_all_but_one_have_codes() -> None:
    assert shown_together(["readme", "README", "Readme", "other"]) == {
        "README": "README",
        "Readme": "%52eadme",
        "other": "other",
        "readme": "%72eadme",
    }
