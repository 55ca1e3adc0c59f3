# SPDX-License-Identifier: AGPL-3.0-or-later
"""P1: the first backup of a raw image into an empty repository."""

from __future__ import annotations

from collections import defaultdict

from bench.lab import MAIN_VM, OURS, Lab
from bench.measured import CacheState, Series, settle
from bench.proof import prove
from bench.results import HEADER, Section, in_order, ratio, timing_rows


def measure(lab: Lab) -> None:
    """All tools, each into a new repository, in every round; every image restored and compared.

    The tools' order turns from round to round. Of the other tools only the last round's backup is restored (they are
    not under test), of ours each one.
    """
    image, content = lab.main_image(), lab.main_content()
    measured: dict[tuple[str, CacheState], Series] = defaultdict(Series)
    names = list(lab.tools)
    for number, (state, last) in enumerate(lab.rounds()):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            tool = lab.tools[name]
            tool.create()
            empty = tool.stored_bytes()
            settle(state, [image])
            run, backup = tool.back_up(MAIN_VM, image)
            measured[(name, state)].runs.append(run)
            measured[(name, state)].stored.append(tool.stored_bytes() - empty)
            lab.backups[name] = [(backup, content)]
            if last or name == OURS:
                lab.prove(tool, backup, image.name, content)
        if lab.qemu is not None:
            lab.qemu.clear()
            settle(state, [image])
            run, copy = lab.qemu.copy(image)
            prove(copy, content, lab.qemu.name)
            lab.qemu.clear()
            measured[(lab.qemu.name, state)].runs.append(run)
    _report(lab, in_order(measured, OURS))


def _report(lab: Lab, measured: dict[tuple[str, CacheState], Series]) -> None:
    results = lab.results
    for key, other in (("P1 borg", "borg"), ("P1 restic", "restic"), ("P1 qemu-img", "qemu-img convert")):
        value, _ = ratio(measured, OURS, other, lab.states)
        if value is None:
            results.missing[key] = f"{other} is not installed"
        else:
            results.values[key] = value
    results.values["P1 memory"] = max(series.peak_bytes for (name, _), series in measured.items() if name == OURS) / 1e6
    rows = timing_rows(measured, OURS)
    stored = [f"{series.stored_bytes / 1e6:.0f}" if series.stored else "" for series in measured.values()]
    results.sections.append(
        Section(
            "P1: first backup",
            f"A raw image of {lab.plan.main_image / 1e9:.1f} GB, ext4 with {lab.plan.main_files / 1e9:.2f} GB of real files.",
            (*HEADER, "stored MB"),
            [(*row, bytes_) for row, bytes_ in zip(rows, stored, strict=True)],
        )
    )
