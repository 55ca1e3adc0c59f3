# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `make test` leaves out is said in CONTRIBUTING.md, by file."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEFT_OUT = re.compile(r"^from tests\.long_forms import .*\bin_soak$", re.MULTILINE)


def test_files_with_tests_that_only_soak_runs_are_named() -> None:
    left_out = {path.name for path in ROOT.glob("tests/*/test_*.py") if LEFT_OUT.search(path.read_text())}
    said = (ROOT / "CONTRIBUTING.md").read_text().partition("## What `make soak` alone holds")[2]
    assert set(re.findall(r"`(test_\w+\.py)`", said)) == left_out
