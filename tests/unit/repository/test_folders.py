# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is ours in a store: the same in docs/architecture.md as in the code."""

from __future__ import annotations

import re
from pathlib import Path

from everywhen.repository.folders import FOLDERS

LAYOUT = (Path(__file__).parents[3] / "docs" / "architecture.md").read_text().partition("## Layout of a repository")[2]


def test_the_table_of_the_layout_names_all_folders() -> None:
    rows = re.findall(r"^\| (`.+?) \|", LAYOUT, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([a-z]+)/", row)}
    assert named | {"twins", "probe"} == set(FOLDERS)
