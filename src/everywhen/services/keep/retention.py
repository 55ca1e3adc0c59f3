# SPDX-License-Identifier: AGPL-3.0-or-later
"""Retention policies: one line that says which moments stay (ux R22), read, written and put in words.

    every-write 24h, all 3d, hourly 14d, daily 90d, weekly 26w, monthly 24mo, yearly 5y, last 3

Each term: within that age keep the newest moment of each period that has one; terms add up. `thinning.py` does it.

| term | keeps |
|---|---|
| `every-write AGE` | every captured write, and every recovery point |
| `all AGE` | every recovery point |
| `hourly`, `daily`, `weekly`, `monthly`, `yearly AGE` | one moment per period |
| `last N` | the newest N recovery points, however old |

Decided here, where the texts leave it open: units are `h` (3,600 s), `d` (24 h), `w` (7 d), and `mo` and `y` by the
calendar of the policy's zone; any period may have any unit; no kind of term stands twice; case and blanks do not matter;
the canonical line has the order of the table and the units as they were given (`14d` does not become `2w`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from everywhen.services.failures import WrongUsage
from everywhen.services.spelling import nearest

DEFAULT = "every-write 24h, hourly 14d, daily 90d, monthly 24mo"

KINDS = ("every-write", "all", "hourly", "daily", "weekly", "monthly", "yearly", "last")
UNITS = {"h": "hour", "d": "day", "w": "week", "mo": "month", "y": "year"}

_TERM = re.compile(r"([a-z-]+)\s+([0-9]{1,4})\s*([a-z]*)", re.ASCII)
_PARTS = re.compile(r"\s*([^\W\d_]*(?:[-_ ]?[^\W\d_]+)*)\W*([0-9]*)\s*(\w*)")
_USUAL = {
    "every-write": (24, "h"),
    "all": (3, "d"),
    "hourly": (14, "d"),
    "daily": (90, "d"),
    "weekly": (26, "w"),
    "monthly": (24, "mo"),
    "yearly": (5, "y"),
    "last": (3, ""),
}
_PERIODS = {"hourly": "an hour", "daily": "a day", "weekly": "a week", "monthly": "a month", "yearly": "a year"}


@dataclass(frozen=True, slots=True)
class Term:
    """`kind` is one of KINDS; `amount` is 1 to 9999 of `unit` (one of UNITS), or moments where the kind is `last`."""

    kind: str
    amount: int
    unit: str

    def __str__(self) -> str:
        return f"{self.kind} {self.amount}{self.unit}"

    @property
    def age_in_words(self) -> str:
        """`24 hours`, `1 day`."""
        return f"{self.amount} {UNITS[self.unit]}{'' if self.amount == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class Policy:
    """What stays. `terms` in canonical order; periods end in `zone`.

    Ages count back from a VM's newest moment, `by_calendar` from the clock (for those who must delete by law; I-11).
    """

    terms: tuple[Term, ...]
    zone: ZoneInfo
    by_calendar: bool = False

    def __str__(self) -> str:
        """The canonical line; `parse_terms` gives the same terms back."""
        return ", ".join(map(str, self.terms))


def parse_terms(line: str) -> tuple[Term, ...]:
    """The terms of a policy's line, in canonical order. Raises WrongUsage, which names the first wrong term."""
    found: dict[str, Term] = {}
    for text in line.split(","):
        term = _parse_term(text.strip(), line)
        if term.kind in found:
            raise WrongUsage(
                f'"{term.kind}" stands twice: "{found[term.kind]}" and "{term}".',
                on=line,
                safe="Nothing was changed.",
                do=["Say the longer one only: it keeps what the other one would."],
            )
        found[term.kind] = term
    return tuple(found[kind] for kind in KINDS if kind in found)


def sentence(policy: Policy) -> str:
    """The policy in words, for somebody who pays for it."""
    terms = {term.kind: term for term in policy.terms}
    parts: list[str] = []
    if term := terms.get("every-write"):
        parts.append(f"any write of the last {term.age_in_words} (without continuous capture: any recovery point)")
    if term := terms.get("all"):
        parts.append(f"every recovery point of the last {term.age_in_words}")
    periods = [f"one {_PERIODS[kind]} for {terms[kind].age_in_words}" for kind in _PERIODS if kind in terms]
    if periods:
        start = "then one moment" if parts else "one moment"
        parts.append(start + periods[0].removeprefix("one") + "".join(f", {period}" for period in periods[1:]))
    if term := terms.get("last"):
        parts.append("the newest one" if term.amount == 1 else f"the newest {term.amount}, however old")
    text = "; ".join(parts) + "."
    ends = f" Hours, days, weeks, months and years end by the clock of {policy.zone.key}." if periods else ""
    counted = "today" if policy.by_calendar else "the newest moment of each VM"
    ages = "" if set(terms) == {"last"} else f" Ages count back from {counted}."
    return f"{text[0].upper()}{text[1:]}{ends}{ages} The newest moment of a VM and what is held stay in any case."


def _parse_term(text: str, line: str) -> Term:
    match = _TERM.fullmatch(text.lower())
    if match:
        kind, amount, unit = match[1], int(match[2]), match[3]
        unit_fits = unit == "" if kind == "last" else unit in UNITS
        if kind in KINDS and unit_fits and amount:
            return Term(kind, amount, unit)
    if not text:
        raise WrongUsage(
            "A retention policy has no empty terms." if line.strip() else "A retention policy needs at least one term.",
            on=line,
            safe="Nothing was changed.",
            do=[f'The default is "{DEFAULT}".'],
        )
    raise WrongUsage(
        f'"{text}" is not a retention term; the nearest is "{nearest_term(text)}".',
        on=text,
        safe="Nothing was changed.",
        do=[f"Terms are {', '.join(KINDS)}; ages look like 24h, 14d, 26w, 24mo, 5y."],
    )


def nearest_term(text: str) -> Term:
    """The right term that looks most like `text`: for error messages and forms."""
    match = _PARTS.match(text.lower())
    word, digits, unit = match.groups() if match else ("", "", "")
    word = re.sub(r"[_ ]", "-", word)
    alike = nearest(word, KINDS) or [kind for kind in KINDS if word and kind[0] == word[0]]
    kind = alike[0] if alike else "daily"
    usual_amount, usual_unit = _USUAL[kind]
    amount = int(digits.lstrip("0")[:4] or usual_amount)
    if kind == "last":
        return Term(kind, amount, "")
    if unit == "m" and kind not in ("every-write", "all", "hourly"):
        return Term(kind, amount, "mo")
    names = {name: short for short, name in UNITS.items()}
    by_name = [names[name] for name in nearest(unit.removesuffix("s"), names)]
    return Term(kind, amount, unit if unit in UNITS else by_name[0] if by_name else usual_unit)
