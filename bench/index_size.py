# SPDX-License-Identifier: AGPL-3.0-or-later
"""P6: runs bench/p6_index.py, which proves and limits itself, and keeps what it prints."""

from __future__ import annotations

import os
import sys

from bench.lab import ROOT, Lab
from bench.results import Section


def measure(lab: Lab) -> None:
    """Its own lines are the result."""
    command = [sys.executable, "-m", "bench.p6_index", str(lab.plan.index_chunks), str(lab.work)]
    env = {"PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8"}
    run = lab.machine.run(command, cwd=ROOT, env=env)
    lab.results.values["P6 done"] = run.wall_s
    rows: list[tuple[str, ...]] = [(line,) for line in run.out.splitlines() if line.strip()]
    text = f"{lab.plan.index_chunks:g} million chunks; {run.wall_s:.0f} s, {run.cpu_s:.0f} s of processor in all."
    lab.results.sections.append(Section("P6: index", text, ("output of bench/p6_index.py",), rows))
