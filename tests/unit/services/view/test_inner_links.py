# SPDX-License-Identifier: AGPL-3.0-or-later
"""Links of a guest, as they are shown: whoever follows them here stays where the guest would be, and in the guest's tree."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everywhen.services.view.inner_links import inner_target
from tests.long_forms import SOAK


def nowhere(_path: str) -> str | None:
    return None


@pytest.mark.parametrize(
    ("folder", "target", "shown"),
    [
        ("", "b", "b"),
        ("a", "../b/", "../b/"),
        ("a/b", "../../c", "../../c"),
        ("a/b", "../../../c", "../../c"),
        ("a/b", "/c/d", "../../c/d"),
        ("", "/", "."),
        ("", "..", "."),
        ("a", "/", ".."),
        ("a", "b/../c", "../a/c"),
        ("a", "/../..//b/../../c", "../c"),
        ("a", "", ""),
    ],
)
def test_targets(folder: str, target: str, shown: str) -> None:
    assert inner_target([part for part in folder.split("/") if part], target, nowhere) == shown


def test_behind_a_link_the_guest_s_own_way_counts() -> None:
    asked: list[str] = []

    def resolved(path: str) -> str:
        asked.append(path)
        return "/srv/found"

    assert inner_target(["a", "b"], "link/../found", resolved) == "../../srv/found"
    assert asked == ["/a/b/link/../found"]


PART = st.sampled_from(["..", ".", "", "a", "b", "link", "up"])


@settings(max_examples=1000 if SOAK else 40)
@given(st.lists(PART, max_size=8), st.booleans(), st.sampled_from(["", "a", "a/b"]))
def test_no_way_leads_out(tmp_path_factory: pytest.TempPathFactory, parts: list[str], absolute: bool, folder: str) -> None:
    """Followed by this machine's kernel, among links that were rewritten too."""
    outer = tmp_path_factory.mktemp("outer").resolve()
    root = outer / "host" / "files"
    (root / "a" / "b" / "a").mkdir(parents=True)
    for place, target in (
        ("a/link", "/a/b/a"),
        ("a/b/link", "../../.."),
        ("link", "a/b"),
        ("a/b/up", "../../link/../../../up"),
    ):
        (root / place).symlink_to(inner_target(place.split("/")[:-1], target, nowhere))
    names = [part for part in folder.split("/") if part]
    shown = inner_target(names, ("/" if absolute else "") + "/".join(parts), nowhere)
    end = Path(os.path.realpath(root.joinpath(*names, shown)))
    assert end == root or root in end.parents
