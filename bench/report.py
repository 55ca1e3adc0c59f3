# SPDX-License-Identifier: AGPL-3.0-or-later
"""docs/benchmarks.md out of the results."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

from bench.lab import Lab
from bench.plan import QUICK
from bench.results import TARGETS, Results, Target
from bench.surroundings import machine, versions

NOTES = Path(__file__).with_name("notes.toml")

_RULES = """\
Every restored byte was compared with what was backed up before a figure was written here; all tools had the same images.
Times are those of whole processes, from start to end, medians; *then to disk* is how long `sync` took after the process
had ended (tools that do not sync their files leave it to that). *Peak* is the largest resident memory of any run. Stored
bytes are the growth of the repository's files. Ratios above 1 in *times Everywhen* mean: slower than Everywhen."""


def write(lab: Lab, wanted: Sequence[str], now: datetime, seconds: float, repeat: str) -> str:
    """The whole document. `wanted`: measures that were asked for."""
    cache = (
        "*Cold*: the page cache of this machine was dropped before the run; what lies below, as the memory of a disk or of a\n"
        "virtualization host, is not known. *Warm*: everything that is read was read just before."
        if lab.cold
        else "The page cache was never dropped (not allowed here, or a quick run): all is *warm*, read just before."
    )
    room = f"{lab.plan.room() / 1e9:.0f} GB"
    parts = [
        "# Benchmarks",
        f"Written by `{repeat}` on {now:%Y-%m-%d} (UTC); the run took {seconds / 60:.0f} min. Do not edit.",
        "**A quick run: tiny data. It shows that the program works; the figures mean nothing.**" if lab.plan is QUICK else "",
        f"Repeat it with `make bench`: it needs {room} below `TMPDIR`, and a machine that does nothing else.",
        f"{_RULES}\n{cache}",
        "## Targets",
        _table(("key", "work", "target", "measured", "reached"), overview(lab.results, wanted)),
        _why(lab.results),
        "" if {target.measure for target in TARGETS} <= set(wanted) else "The other targets were not measured in this run.",
        "P10 of the design is not measured by this program.",
        ""
        if any(measure.startswith("P5") for measure in wanted)
        else "What capture costs, in another run: `benchmarks-capture.md`.",
        "## Machine",
        _table(("what", "value"), machine(lab.work)),
        "## Versions and settings",
        _table(("program", "version; settings"), versions(lab)),
    ]
    for section in lab.results.sections:
        parts += [f"## {section.title}", section.text, _table(section.header, section.rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def overview(results: Results, wanted: Iterable[str]) -> list[tuple[str, ...]]:
    """A row for every target of the measures that were asked for: measured or not, and why not."""
    asked = set(wanted)
    rows: list[tuple[str, ...]] = []
    for target in TARGETS:
        if target.measure not in asked:
            continue
        value = results.values.get(target.key)
        if value is None:
            measured, reached = "not measured", results.missing.get(target.key, "no reason was recorded")
        else:
            measured, reached = target.show(value), "yes" if target.reached(value) else "**no**"
        rows.append((target.key, target.work, target.demand, measured, reached))
    return rows


def _why(results: Results) -> str:
    notes = tomllib.loads(NOTES.read_text())
    lines = [f"- {target.key}: {notes[target.key]['why']}" for target in _not_reached(results) if target.key in notes]
    return "Why targets are not reached:\n\n" + "\n".join(lines) if lines else ""


def _not_reached(results: Results) -> list[Target]:
    return [target for target in TARGETS if (value := results.values.get(target.key)) is not None and not target.reached(value)]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
