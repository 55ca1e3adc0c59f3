# SPDX-License-Identifier: AGPL-3.0-or-later
"""P5: what a tap costs the guest: its writes without one, into a sink that throws them away, and into ours with its spool."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from bench.guest import Fio, Guest, Work, Writes, make_disk, missing
from bench.lab import Lab
from bench.protection import NBDKIT, NullSink, Protection, forget, prove_newest
from bench.results import Section
from bench.tools import Everywhen

WORKS = (
    (Work("4 KiB, random, 1 at once", 4096, 1), "P5 4k 1"),
    (Work("4 KiB, random, 16 at once", 4096, 16), "P5 4k 16"),
    (Work("4 KiB, sequential, 16 at once", 4096, 16, "write"), "P5 4k seq"),
    (Work("1 MiB, sequential, 4 at once", 1 << 20, 4, "write"), "P5 1M seq"),
)
NO_TAP, NULL, OURS = "no tap", f"tap to {NBDKIT} null", "everywhen protect"
_HEADER = ("writes", "case", "writes/s", "lowest to highest", "p50 µs", "p99 µs", "p99.9 µs", "× no tap", "× nbdkit")


def measure(lab: Lab) -> None:
    """All works in each case, one case after the other, another one first in each round; the daemon and the tap are new."""
    if (absent := missing(NBDKIT)) is not None:
        for _, key in WORKS:
            lab.results.missing[key] = absent
        return
    tool = lab.everywhen("everywhen-tap")
    tool.create()
    image = make_disk(lab.work / "image" / "tap.raw", lab.plan.tap_disk, "tap")
    cases = [NO_TAP, NULL, OURS]
    found: dict[tuple[str, str], list[Writes]] = defaultdict(list)
    lost: dict[str, int] = defaultdict(int)
    for number in range(lab.plan.tap_rounds):
        for case in cases[number % 3 :] + cases[: number % 3]:
            with Guest(image) as guest, _receiving(lab, tool, guest, case) as protection:
                for work, _ in WORKS:
                    found[(work.name, case)].append(_written(lab, guest, case, work))
                    if protection is not None and protection.lost() > sum(lost.values()):
                        lost[work.name] += 1
                        protection.followed()
            if case == OURS:
                prove_newest(tool, "tapped", image)
    image.unlink()
    forget(lab, tool)
    _report(lab, found, lost)


@contextmanager
def _receiving(lab: Lab, tool: Everywhen, guest: Guest, case: str) -> Iterator[Protection | None]:
    """Who is at the other end of the tap, while the body runs."""
    if case == NO_TAP:
        yield None
    elif case == NULL:
        with NullSink(guest):
            yield None
    else:
        with Protection.of(lab, tool, "tapped", guest, "--seal-every", "24h") as protection:
            yield protection
            protection.stop()


def _written(lab: Lab, guest: Guest, case: str, work: Work) -> Writes:
    with Fio(guest, work, lab.plan.tap_seconds, warm_s=min(1.0, lab.plan.tap_seconds)) as fio:
        writes = fio.end()
    lab.log(f"   {case}: {work.name}: {writes.rate:,.0f}/s, p99 {writes.p99:.0f} µs")
    return writes


def _report(lab: Lab, found: dict[tuple[str, str], list[Writes]], lost: dict[str, int]) -> None:
    rows: list[tuple[str, ...]] = []
    for work, key in WORKS:
        ratio = _against(found, work, OURS, NULL)
        if lost[work.name]:
            lab.results.missing[key] = f"capture was lost in {lost[work.name]} of {lab.plan.tap_rounds} runs"
        else:
            lab.results.values[key] = ratio
        for case in (NO_TAP, NULL, OURS):
            runs = found[(work.name, case)]
            rates = [run.rate for run in runs]
            median = [statistics.median(getattr(run, name) for run in runs) for name in ("p50", "p99", "p999")]
            rows.append(
                (
                    work.name,
                    case,
                    f"{statistics.median(rates):,.0f}",
                    f"{min(rates):,.0f} to {max(rates):,.0f}",
                    *(f"{value:,.0f}" for value in median),
                    "" if case == NO_TAP else f"{_against(found, work, case, NO_TAP):.2f}",
                    f"{ratio:.2f}" if case == OURS else "",
                )
            )
    plan = lab.plan
    text = (
        f"fio over NBD to a qemu-storage-daemon with a raw disk of {plan.tap_disk >> 20} MiB (O_DIRECT, aio=native), "
        f"{plan.tap_seconds:g} s each after one that does not count, data that can be compressed by half; {plan.tap_rounds} "
        "rounds, medians; ratios are medians of those of each round. fio, the daemon and what receives share the processors. "
        "Both taps are attached by the same code: granularity 4 KiB."
    )
    lab.results.sections.append(Section("P5: what a tap costs the guest", text, _HEADER, rows))


def _against(found: dict[tuple[str, str], list[Writes]], work: Work, case: str, other: str) -> float:
    """The median over all rounds of what `case` reached of `other`."""
    pairs = zip(found[(work.name, case)], found[(work.name, other)], strict=True)
    return statistics.median(mine.rate / theirs.rate for mine, theirs in pairs)
