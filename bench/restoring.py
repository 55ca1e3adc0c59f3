# SPDX-License-Identifier: AGPL-3.0-or-later
"""P3: restoring the main image, from the oldest and the newest backup there is."""

from __future__ import annotations

from collections import defaultdict

from bench.lab import OURS, Lab
from bench.measured import CacheState, Series, settle
from bench.proof import prove
from bench.results import HEADER, Section, in_order, timing_rows

NEWEST = "everywhen, newest point"


def measure(lab: Lab) -> None:
    """All tools restore their first backup of the main image; ours also the newest. Every byte of every run compared."""
    image = lab.main_image()
    jobs = [(name, lab.primed(name), *lab.backups[name][0]) for name in lab.tools]
    if len(lab.backups[OURS]) > 1:
        jobs.append((NEWEST, lab.tools[OURS], *lab.backups[OURS][-1]))
    measured: dict[tuple[str, CacheState], Series] = defaultdict(Series)
    for number, (state, _) in enumerate(lab.rounds()):
        turn = number % len(jobs)
        for label, tool, backup, content in jobs[turn:] + jobs[:turn]:
            settle(state, [tool.places.repository])
            run, restored = tool.restore(backup, image.name)
            prove(restored, content, f"{label}, {backup}")
            tool.clear_restored()
            measured[(label, state)].runs.append(run)
        if lab.qemu is not None:
            lab.qemu.clear()
            settle(state, [image])
            run, copy = lab.qemu.copy(image)
            prove(copy, lab.main_content(), lab.qemu.name)
            lab.qemu.clear()
            measured[(lab.qemu.name, state)].runs.append(run)
    state = lab.states[0]
    slower = max(series.wall_s for (name, cache), series in measured.items() if name in (OURS, NEWEST) and cache == state)
    for key, other in (("P3 borg", "borg"), ("P3 restic", "restic"), ("P3 qemu-img", "qemu-img convert")):
        if (other, state) in measured:
            lab.results.values[key] = slower / measured[(other, state)].wall_s
        else:
            lab.results.missing[key] = f"{other} is not installed"
    text = (
        f"The image of P1, from the first of {len(lab.backups[OURS])} backups; ours also from the newest. The slower of "
        "our two counts against the targets. `qemu-img convert` copies the image itself."
    )
    lab.results.sections.append(Section("P3: restore", text, HEADER, timing_rows(in_order(measured, OURS), OURS)))
