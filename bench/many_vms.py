# SPDX-License-Identifier: AGPL-3.0-or-later
"""P7 and P7b: many alike VMs in one repository: clones, and VMs that were installed separately."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable
from pathlib import Path

from bench.changes import PAGE, change
from bench.files import another_installation, copy_files, real_files
from bench.images import CannotMount, FileSystem, from_tree, installed, size_for
from bench.lab import OURS, Lab
from bench.measured import Series, settle
from bench.proof import content_of
from bench.results import Section

DIFFERENT = 0.03
CLONE_SHARE = 0.001
_HEADER = ("tool", "first VM: stored MB", "all: stored MB", "saved", "each further VM: MB", "first: s", "each further: s")


def measure_clones(lab: Lab) -> None:
    """P7: one image, and copies in which 0.1 % of the bytes were written over, 4 KiB at a time, at random places."""
    original = lab.work / "image" / "original.raw"
    original.parent.mkdir(exist_ok=True)
    tree = lab.work / "tree"
    size = lab.plan.clone_files
    files = real_files(lab.plan.sources, size, "clones")
    copy_files(files, tree)
    from_tree(original, tree, size_for(files, "ext4"), "clones")
    shutil.rmtree(tree)
    writes = max(1, int(size * CLONE_SHARE) // PAGE)

    def clone(number: int, image: Path) -> None:
        shutil.copyfile(original, image)
        if number:
            change(image, f"P7 {number}", writes, lab.work / "changed.json", only_data=True)

    text = (
        f"{lab.plan.vms} VMs: an ext4 image with {size / 1e9:.2f} GB of real files, and clones of it with {writes} "
        "random writes of 4 KiB each (incompressible)."
    )
    section, saved = _several(lab, "P7: clones", text, clone)
    original.unlink()
    lab.results.values["P7 saved"] = saved
    lab.results.sections.append(section)


def measure_installed(lab: Lab) -> None:
    """P7b: the same files plus 3 % others, on a new file system, in another order; for each file system."""
    size = lab.plan.vm_files
    base = real_files(lab.plan.sources, size, "installed")
    taken = {file.source for file in base}
    pool = [file for file in real_files(lab.plan.sources, size, "others") if file.source not in taken]
    for system in ("ext4", "XFS", "NTFS"):
        key = f"P7b saved {system}"
        if system not in lab.plan.vm_systems:
            lab.results.missing[key] = "not part of a quick run"
            continue

        def install(number: int, image: Path, system: FileSystem = system) -> None:
            files = another_installation(base, pool, f"P7b {number}", DIFFERENT) if number else base
            installed(image, system, files, f"P7b {number}")

        text = (
            f"{lab.plan.vms} VMs on {system}, {size / 1e9:.2f} GB of real files each: every one a new file system, filled "
            f"file by file, folders in another order, {DIFFERENT:.0%} of the bytes replaced by other real files."
        )
        try:
            section, saved = _several(lab, f"P7b: separately installed VMs, {system}", text, install)
        except CannotMount as error:
            lab.results.missing[key] = str(error)
            continue
        lab.results.values[key] = saved
        lab.results.sections.append(section)


def _several(lab: Lab, title: str, text: str, make: Callable[[int, Path], None]) -> tuple[Section, float]:
    """Back up VM after VM into one repository of each tool. The table, and what ours saved, in per cent.

    An image is removed when all tools have it; at the end all of ours, and the last one of the others, are restored and
    compared with the contents that were noted.
    """
    image = lab.work / "image" / "disk.raw"
    image.parent.mkdir(exist_ok=True)
    tools = [tool.elsewhere(lab.work / f"{name}-many") for name, tool in lab.tools.items()]
    series = {tool.name: Series() for tool in tools}
    backups: dict[str, list[tuple[str, str]]] = {tool.name: [] for tool in tools}
    for tool in tools:
        tool.create()
    for number in range(lab.plan.vms):
        image.unlink(missing_ok=True)
        make(number, image)
        content = content_of(image)
        for tool in tools:
            before = tool.stored_bytes()
            settle("warm", [image])
            run, backup = tool.back_up(f"vm{number}", image)
            series[tool.name].runs.append(run)
            series[tool.name].stored.append(tool.stored_bytes() - before)
            backups[tool.name].append((backup, content))
    image.unlink()
    rows = []
    for tool in tools:
        for backup, content in backups[tool.name] if tool.name == OURS else backups[tool.name][-1:]:
            lab.prove(tool, backup, image.name, content)
        tool.clear()
        rows.append(_row(tool.name, series[tool.name]))
    return Section(title, f"{text} Cache: warm.", _HEADER, rows), _saved(series[OURS])


def _saved(series: Series) -> float:
    return 100 * (1 - sum(series.stored) / (len(series.stored) * series.stored[0]))


def _row(name: str, series: Series) -> tuple[str, ...]:
    walls = [run.wall_s for run in series.runs]
    return (
        name,
        f"{series.stored[0] / 1e6:.1f}",
        f"{sum(series.stored) / 1e6:.1f}",
        f"{_saved(series):.1f} %",
        f"{statistics.mean(series.stored[1:]) / 1e6:.2f}",
        f"{walls[0]:.2f}",
        f"{statistics.median(walls[1:]):.2f}",
    )
