# SPDX-License-Identifier: AGPL-3.0-or-later
"""P8, and P3 after many points: restoring the newest and the oldest of 1,000 points."""

from __future__ import annotations

import subprocess
import time
from collections import defaultdict
from pathlib import Path

from bench.changes import change
from bench.lab import OURS, Lab
from bench.library import opened
from bench.measured import CacheState, Series, settle
from bench.proof import content_of, prove
from bench.results import HEADER, Section, in_order, timing_rows
from bench.tools import PASSPHRASE, Everywhen
from everywhen.services.backup import BackupOrder, back_up
from everywhen.services.catalog import read_catalog
from everywhen.storage.posix import PosixStore

VM = "history"
OLDEST, NEWEST = "everywhen, oldest point", "everywhen, newest point"


def measure(lab: Lab) -> None:
    """Points are made in one process through the library (the same code as the command line); restores are whole processes.

    In each round: the main image from its own repository (P3), the oldest, the newest; in turning order.
    """
    fresh = lab.primed(OURS)
    tool = lab.everywhen("everywhen-history")
    tool.create()
    image = lab.work / "image" / "history.raw"
    subprocess.run(["cp", "--sparse=always", str(lab.main_image()), str(image)], check=True)
    _, oldest = tool.back_up(VM, image)
    before = content_of(image)
    began = time.perf_counter()
    newest = _make_points(lab, tool, image, oldest.partition("@")[2])
    making = time.perf_counter() - began
    after = content_of(image)
    image.unlink()
    jobs = [(OURS, fresh, *lab.backups[OURS][0]), (OLDEST, tool, oldest, before), (NEWEST, tool, newest, after)]
    measured: dict[tuple[str, CacheState], Series] = defaultdict(Series)
    for number, (state, _) in enumerate(lab.rounds()):
        turn = number % len(jobs)
        for label, repository, backup, content in jobs[turn:] + jobs[:turn]:
            settle(state, [repository.places.repository])
            run, restored = repository.restore(backup, "history.raw")
            prove(restored, content, f"{label}, {backup}")
            repository.clear_restored()
            measured[(label, state)].runs.append(run)
    tool.clear()
    _report(lab, in_order(measured, OURS), making)


def _make_points(lab: Lab, tool: Everywhen, image: Path, since: str) -> str:
    """Change the image and back it up, `points` times; the address of the last point."""
    listed = lab.work / "changed.json"
    with opened(PosixStore(str(tool.places.repository)), PASSPHRASE, tool.cache) as repository:
        for number in range(lab.plan.points):
            change(image, f"P8 {number}", lab.plan.writes_a_point, listed)
            order = BackupOrder(VM, {"vda": str(image)}, tool.cache, changed_blocks={"vda": str(listed)}, since=since)
            since = back_up(repository, read_catalog(repository), order, lambda _done, _total: None).point.point
    return f"{VM}@{since}"


def _report(lab: Lab, measured: dict[tuple[str, CacheState], Series], making: float) -> None:
    state = lab.states[0]
    walls = {name: series.wall_s for (name, cache), series in measured.items() if cache == state}
    lab.results.values["P8 ratio"] = max(walls[OLDEST], walls[NEWEST]) / min(walls[OLDEST], walls[NEWEST])
    lab.results.values["P3 history"] = max(walls[OLDEST], walls[NEWEST]) / walls[OURS]
    plan = lab.plan
    text = (
        f"{plan.points:,} points after the first one, {plan.writes_a_point} random writes of 4 KiB before each, changed blocks "
        f"known; made in one process in {making:.0f} s ({making / plan.points * 1e3:.0f} ms each, the changes of the image "
        f"included). `{OURS}` alone is the P1 image in its own repository."
    )
    lab.results.sections.append(Section("P8: many points", text, HEADER, timing_rows(measured, OURS)))
