# SPDX-License-Identifier: AGPL-3.0-or-later
"""docs/invariants.md against the tree: each number is cited where the page says that it is kept, checked and tested."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs/invariants.md").read_text().splitlines()
    if re.match(r"\| I-\d+ ", line)
]


def test_all_eleven_are_there() -> None:
    assert [row[0] for row in ROWS] == [f"I-{number}" for number in range(1, 12)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_an_invariant_is_cited_where_the_page_says(row: list[str]) -> None:
    number, _, kept_by, checked, tests = row
    cited = re.compile(rf"\b{number}\b")
    for cell in (kept_by, tests):
        for path in re.findall(r"`([^`]+)`", cell):
            assert cited.search((ROOT / path).read_text()), f"{path} does not cite {number}"
    if checked == "yes":
        sources = (ROOT / "src/everywhen/repository/verify").glob("*.py")
        checks = [path for path in sources if path.stem.startswith(("check_", "verify"))]
        assert any(cited.search(path.read_text()) for path in checks), f"verify has no check of {number}"
