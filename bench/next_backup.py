# SPDX-License-Identifier: AGPL-3.0-or-later
"""P2, P2b and P2c: the next backup after random changes; changed blocks known, unknown, and on a sparse disk."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from bench.changes import PAGE, change
from bench.images import from_tree
from bench.lab import MAIN_VM, OURS, Lab
from bench.measured import CacheState, Series, settle
from bench.proof import content_of
from bench.results import HEADER, Section, in_order, ratio, timing_rows
from bench.tools import BorgFixed, Everywhen, Known, Tool

SCAN = "everywhen, hash scan"
_Measured = dict[tuple[str, CacheState], Series]


def measure(lab: Lab) -> None:
    """In every round the image changes anew, and all back up the same change, each as its next backup.

    borg's default chunker and restic take part in the first round only: they show what others store, no target is theirs.
    """
    image = lab.main_image()
    known = lab.primed(OURS)
    scan = lab.everywhen("everywhen-scan")
    scan.name = SCAN
    fixed = lab.borg_fixed()
    others = [lab.primed(name) for name in lab.tools if name != OURS]
    own: list[Tool] = [scan, *([fixed] if fixed else [])]
    for tool in own:
        tool.create()
        lab.back_up_main(tool)
    measured: _Measured = defaultdict(Series)
    for number, (state, last) in enumerate(lab.rounds()):
        changes = change(image, f"P2 {number}", lab.plan.writes, lab.work / "changed.json")
        lab.main_changed()
        told = Known(changes.listed, lab.backups[OURS][-1][0])
        for tool in [known, *own, *([] if number else others)]:
            backup = _one(tool, image, state, measured, told if tool is known else None)
            lab.backups[tool.name].append((backup, lab.main_content()))
            if last or tool is not fixed:
                lab.prove(tool, backup, image.name, lab.main_content())
    for tool in own:
        tool.clear()
    first = lab.states[0]
    results = lab.results
    results.values["P2 time"] = measured[(OURS, first)].wall_s
    results.values["P2 stored"] = _worst_stored(lab, measured, OURS)
    value, _ = ratio(measured, SCAN, BorgFixed.name, lab.states)
    if value is None:
        results.missing["P2b borg"] = "borg is not installed"
    else:
        results.values["P2b borg"] = value
    size = lab.plan.writes * PAGE / 1e6
    text = f"{lab.plan.writes:,} random writes of 4 KiB ({size:.1f} MB) before each backup of the P1 image."
    results.sections.append(_section(lab, "P2 and P2b: next backup", text, measured))


def measure_sparse(lab: Lab) -> None:
    """P2c: Everywhen only; the others read all of a disk of 1 TB."""
    image = lab.work / "image" / "sparse.raw"
    image.parent.mkdir(exist_ok=True)
    with lab.tree() as tree:
        from_tree(image, tree, lab.plan.sparse_image, "sparse")
    tool = lab.everywhen("everywhen-sparse")
    tool.create()
    measured: _Measured = defaultdict(Series)
    first: _Measured = defaultdict(Series)
    backup = _one(tool, image, "warm", first)
    for number, (state, last) in enumerate(lab.rounds()):
        changes = change(image, f"P2c {number}", lab.plan.writes, lab.work / "changed.json", only_data=True)
        backup = _one(tool, image, state, measured, Known(changes.listed, backup))
        if last:
            lab.prove(tool, backup, image.name, content_of(image))
    tool.clear()
    image.unlink()
    lab.results.values["P2c time"] = measured[(OURS, lab.states[0])].wall_s
    lab.results.values["P2c stored"] = _worst_stored(lab, measured, OURS)
    initial = first[(OURS, "warm")].runs[0]
    text = (
        f"A sparse disk of {lab.plan.sparse_image / 1e9:,.0f} GB, ext4 with the files of P1 in it; {lab.plan.writes:,} "
        f"random writes of 4 KiB where it has data. Its first backup took {initial.wall_s:.2f} s. The other tools have no "
        "list of changed blocks and would read the whole disk; they are left out."
    )
    lab.results.sections.append(_section(lab, "P2c: next backup of a sparse disk", text, measured))


def _one(tool: Tool, image: Path, state: CacheState, measured: _Measured, known: Known | None = None) -> str:
    """A measured backup."""
    before = tool.stored_bytes()
    settle(state, [image])
    if known is not None and isinstance(tool, Everywhen):
        run, backup = tool.back_up_changed(MAIN_VM, image, known)
    else:
        run, backup = tool.back_up(MAIN_VM, image)
    series = measured[(tool.name, state)]
    series.runs.append(run)
    series.stored.append(tool.stored_bytes() - before)
    return backup


def _worst_stored(lab: Lab, measured: _Measured, name: str) -> float:
    """Bytes stored by the worst round over the bytes that changed."""
    return max(max(series.stored) for (tool, _), series in measured.items() if tool == name) / (lab.plan.writes * PAGE)


def _section(lab: Lab, title: str, text: str, measured: _Measured) -> Section:
    measured = in_order(measured, OURS)
    changed = lab.plan.writes * PAGE
    rows = [
        (*row, f"{series.stored_bytes / 1e6:.2f}", f"{series.stored_bytes / changed:.2f}")
        for row, series in zip(timing_rows(measured, OURS), measured.values(), strict=True)
    ]
    return Section(title, text, (*HEADER, "stored MB", "stored / changed"), rows)
