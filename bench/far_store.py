# SPDX-License-Identifier: AGPL-3.0-or-later
"""P9: restoring through a store that is 30 ms away, against what the line could carry."""

from __future__ import annotations

import json
import shutil
import sys
from typing import Any

from bench.lab import MAIN_VM, OURS, ROOT, Lab
from bench.measured import Run, settle
from bench.proof import prove
from bench.results import Section
from bench.tools import Everywhen

_HEADER = ("local cache", "seconds", "until reading begins", "received MB", "requests", "line alone: s", "share of the line")


def measure(lab: Lab) -> None:
    """The main image's first point; once with the index at hand (which counts), once with nothing at hand.

    The share is (what the point takes in the repository / rate of the line) / seconds of the whole process: bytes that
    are received without need do not count in our favour.
    """
    tool = lab.primed(OURS)
    assert isinstance(tool, Everywhen)
    backup, content = lab.backups[OURS][0]
    needed = _stored(tool, backup)
    plan = lab.plan
    alone = needed / plan.line_bytes_per_s
    rows: list[tuple[str, ...]] = []
    for label in ("there", "empty"):
        cache = tool.cache if label == "there" else lab.work / "empty-cache"
        runs: list[tuple[Run, dict[str, Any]]] = []
        for _ in range(max(1, plan.cold_rounds)):
            if label == "empty":
                shutil.rmtree(cache, ignore_errors=True)
            restored = tool.clear_restored() / "main.raw"
            settle("warm", [tool.places.repository])
            command = [
                sys.executable,
                "-m",
                "bench.far_restore",
                str(tool.places.repository),
                str(cache),
                backup,
                str(restored),
            ]
            line = [str(plan.line_latency_s), str(plan.line_bytes_per_s)]
            run = lab.machine.run([*command, *line], cwd=ROOT, env=tool.env)
            prove(restored, content, f"restore over the line, cache {label}")
            runs.append((run, json.loads(run.out)))
        tool.clear_restored()
        run, told = sorted(runs, key=lambda item: item[0].wall_s)[len(runs) // 2]
        share = alone / run.wall_s
        if label == "there":
            lab.results.values["P9 share"] = share
        received = f"{told['received'] / 1e6:.0f} of {needed / 1e6:.0f} needed"
        figures = (
            f"{run.wall_s:.2f}",
            f"{told['opening']:.2f}",
            received,
            f"{told['requests']:,}",
            f"{alone:.2f}",
            f"{share:.2f}",
        )
        rows.append((label, *figures))
    shutil.rmtree(lab.work / "empty-cache", ignore_errors=True)
    text = (
        f"The P1 image through a store with {plan.line_latency_s * 1e3:.0f} ms a round trip and "
        f"{plan.line_bytes_per_s / 1e6:.0f} MB/s for all transfers together (a wrapper around the local store, "
        "in a process of its own that uses the library)."
    )
    lab.results.sections.append(Section("P9: restore from far away", text, _HEADER, rows))


def _stored(tool: Everywhen, backup: str) -> int:
    """Bytes that a first point's blocks take in the repository."""
    point = backup.partition("@")[2]
    return next(found.stored for found in tool.points(MAIN_VM) if found.point == point)
