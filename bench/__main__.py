# SPDX-License-Identifier: AGPL-3.0-or-later
"""Measures the targets of the design side by side with the tools people use, and writes docs/benchmarks.md.

python -m bench [--only P1,P3] [--quick] [--work DIR] [--keep] [--output FILE] [--everywhen PROGRAM]

Every command that is measured is printed with what it cost; with --keep its data stay, so that the same command can be run
under a profiler.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from bench import (
    amplification,
    far_store,
    file_history,
    first_backup,
    history,
    host_load,
    incremental,
    index_size,
    interval_cost,
    many_vms,
    next_backup,
    opening,
    report,
    restoring,
    tap_speed,
)
from bench.files import NotEnoughFiles
from bench.lab import ROOT, Lab, NoRoom
from bench.measured import ToolFailed
from bench.plan import FULL, QUICK
from bench.proof import WrongResult
from bench.results import MEASURES

Step = tuple[tuple[str, ...], Callable[[Lab], None]]

ON_THE_MAIN_IMAGE: tuple[Step, ...] = (
    (("P1",), first_backup.measure),
    (("P2", "P2b"), next_backup.measure),
    (("P3",), restoring.measure),
    (("P9",), far_store.measure),
    (("P8",), history.measure),
    (("P4",), opening.measure),
)
"""In the order in which they go on using each other's repositories."""


def _tap(lab: Lab) -> None:
    """P5 from both sides: the guest's, in both modes, and the host's."""
    tap_speed.measure(lab)
    interval_cost.measure(lab)
    host_load.measure_one(lab)


ON_THEIR_OWN: tuple[Step, ...] = (
    (("P2c",), next_backup.measure_sparse),
    (("P4b",), file_history.measure),
    (("P7",), many_vms.measure_clones),
    (("P7b",), many_vms.measure_installed),
    (("P6",), index_size.measure),
    (("P5",), _tap),
    (("P5b",), host_load.measure_five),
    (("P5c",), amplification.measure),
    (("P5d",), incremental.measure),
)
"""Each makes what it needs and removes it."""

DOCUMENT = ROOT / "docs" / "benchmarks.md"


def main() -> int:
    """See the module. The exit code: 0 measured (whether or not targets are reached), 1 something failed or was wrong."""
    options = _options()
    wanted = options.only.split(",") if options.only else list(MEASURES)
    unknown = sorted(set(wanted) - set(MEASURES))
    if unknown:
        _log(f"{', '.join(unknown)}: not measured here; there are {', '.join(MEASURES)}")
        return 2
    if shutil.which(options.everywhen) is None:
        _log(f"{options.everywhen} is not there: make setup")
        return 2
    if options.work:
        options.work.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="everywhen-bench-", dir=options.work))
    began, now = time.monotonic(), datetime.now(UTC)
    lab = Lab(QUICK if options.quick else FULL, work, options.everywhen, _log)
    try:
        lab.need_room()
        _measure(lab, wanted)
        text = report.write(lab, wanted, now, time.monotonic() - began, _repeat(options))
    except NoRoom as error:
        _log(str(error))
        return 1
    finally:
        if options.keep:
            _log(f"kept: {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)
    output = options.output or (None if options.quick or options.only else DOCUMENT)
    if output is None:
        print(text)
    else:
        output.write_text(text)
        _log(f"written: {output}")
    for wrong in lab.results.wrong:
        _log(f"FAILED: {wrong}")
    return 1 if lab.results.wrong else 0


def _measure(lab: Lab, wanted: list[str]) -> None:
    """All steps that were asked for."""
    for steps in (ON_THE_MAIN_IMAGE, ON_THEIR_OWN):
        for measures, step in steps:
            if set(measures) & set(wanted):
                _take(lab, measures, step)
        lab.forget_main()


def _take(lab: Lab, measures: tuple[str, ...], step: Callable[[Lab], None]) -> None:
    """One step. If it fails it says nothing, and the others go on."""
    name = " and ".join(measures)
    _log(f"== {name}")
    sections = len(lab.results.sections)
    began = time.monotonic()
    try:
        step(lab)
    except (ToolFailed, WrongResult, NotEnoughFiles, subprocess.CalledProcessError, OSError) as error:
        detail = getattr(error, "stderr", None)
        reason = " ".join((f"{error}" + (f": {detail.strip()}" if detail else "")).split())
        del lab.results.sections[sections:]
        for measure in measures:
            lab.results.drop(measure, reason)
    for row in report.overview(lab.results, measures):
        _log("   " + " | ".join(row))
    _log(f"== {name}: {time.monotonic() - began:.0f} s")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measures the targets of the design, side by side.")
    parser.add_argument("--only", metavar="P1,P3", help=f"some of {', '.join(MEASURES)}; printed, not written to docs")
    parser.add_argument("--quick", action="store_true", help="tiny data: shows that this program works, measures nothing")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where a fresh work folder is made (default: below TMPDIR)")
    parser.add_argument("--keep", action="store_true", help="keep the work folder")
    parser.add_argument("--output", type=Path, metavar="FILE", help="instead of docs/benchmarks.md, or of printing")
    ours = Path(sys.executable).with_name("everywhen")
    parser.add_argument("--everywhen", default=str(ours), metavar="PROGRAM", help="the program to measure")
    return parser.parse_args()


def _repeat(options: argparse.Namespace) -> str:
    """The command, without the folders of whoever ran it."""
    chosen = [f"--only {options.only}"] if options.only else []
    return " ".join(["python -m bench", *chosen, *(["--quick"] if options.quick else [])])


def _log(text: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
