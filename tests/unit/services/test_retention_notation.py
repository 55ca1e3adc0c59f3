# SPDX-License-Identifier: AGPL-3.0-or-later
"""The line of a retention policy: read, refused with the nearest right term, and put in words."""

from __future__ import annotations

from zoneinfo import ZoneInfo

import pytest

from everywhen.services.failures import WrongUsage
from everywhen.services.keep.retention import DEFAULT, Policy, parse_terms, sentence

BERLIN = ZoneInfo("Europe/Berlin")
FULL = "every-write 24h, all 3d, hourly 14d, daily 90d, weekly 26w, monthly 24mo, yearly 5y, last 3"


@pytest.mark.parametrize("line", [FULL, DEFAULT, "last 1", "yearly 100y"])
def test_the_canonical_line_is_itself(line: str) -> None:
    assert str(Policy(parse_terms(line), BERLIN)) == line


def test_order_case_and_blanks_do_not_matter() -> None:
    assert parse_terms(" Last 3,daily   90 D,every-write 24h") == parse_terms("every-write 24h, daily 90d, last 3")


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("hourli 14d", "hourly 14d"),
        ("daily 90", "daily 90d"),
        ("daily", "daily 90d"),
        ("monthly 24m", "monthly 24mo"),
        ("monthly 24 months", "monthly 24mo"),
        ("every-write 30m", "every-write 30h"),
        ("every write 24h", "every-write 24h"),
        ("last 3d", "last 3"),
        ("yearly 0y", "yearly 5y"),
        ("weekly -3w", "weekly 3w"),
        ("daily 90000d", "daily 9000d"),
        ("daily 00014d", "daily 14d"),
        ("weekly26w", "weekly 26w"),
    ],
)
def test_a_wrong_term_is_named_with_the_nearest_right_one(wrong: str, nearest: str) -> None:
    with pytest.raises(WrongUsage) as refusal:
        parse_terms(f"hourly 1d, {wrong}")
    assert refusal.value.what == f'"{wrong}" is not a retention term; the nearest is "{nearest}".'
    assert refusal.value.on == wrong


@pytest.mark.parametrize(
    ("line", "what"), [("", "at least one"), ("daily 1d,", "no empty terms"), ("daily 1d, daily 2d", "stands twice")]
)
def test_lines_that_are_wrong_as_a_whole(line: str, what: str) -> None:
    with pytest.raises(WrongUsage, match=what):
        parse_terms(line)


def test_the_sentence_for_the_one_who_pays() -> None:
    assert sentence(Policy(parse_terms(DEFAULT), BERLIN)) == (
        "Any write of the last 24 hours (without continuous capture: any recovery point); "
        "then one moment an hour for 14 days, one a day for 90 days, one a month for 24 months. "
        "Hours, days, weeks, months and years end by the clock of Europe/Berlin. "
        "Ages count back from the newest moment of each VM. "
        "The newest moment of a VM and what is held stay in any case."
    )
    assert sentence(Policy(parse_terms("last 3"), BERLIN)) == (
        "The newest 3, however old. The newest moment of a VM and what is held stay in any case."
    )
    by_law = sentence(Policy(parse_terms("daily 1d, all 1w, last 1"), BERLIN, by_calendar=True))
    assert by_law.startswith("Every recovery point of the last 1 week; then one moment a day for 1 day; the newest one.")
    assert "Ages count back from today." in by_law
