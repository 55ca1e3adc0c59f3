# SPDX-License-Identifier: AGPL-3.0-or-later
"""P5: what a tap costs the guest: its writes without one, into a sink that throws them away, and into ours with its spool."""

from __future__ import annotations

import statistics
from collections import defaultdict
from contextlib import ExitStack, nullcontext

from bench.guest import Fio, Guest, Work, Writes, make_disk, missing
from bench.lab import Lab
from bench.protection import NBDKIT, NullSink, Protection, forget, prove_newest
from bench.results import Section

WORKS = (
    (Work("4 KiB, random, 1 at once", 4096, 1), "P5 4k 1"),
    (Work("4 KiB, random, 16 at once", 4096, 16), "P5 4k 16"),
    (Work("4 KiB, sequential, 16 at once", 4096, 16, "write"), "P5 4k seq"),
    (Work("1 MiB, sequential, 4 at once", 1 << 20, 4, "write"), "P5 1M seq"),
)
NO_TAP, NULL, SINK, OURS = "no tap", f"tap to {NBDKIT} null", "tap to our sink and spool", "everywhen protect, all of it"
_CASES = (NO_TAP, NULL, SINK, OURS)
_HEADER = ("writes", "case", "writes/s", "lowest to highest", "p50 µs", "p99 µs", "p99.9 µs", "× no tap", "× nbdkit", "lost")


def measure(lab: Lab) -> None:
    """Each work in all cases, one right after the other, another one first in each round; each case has a guest of its own."""
    if (absent := missing(NBDKIT)) is not None:
        for _, key in WORKS:
            lab.results.missing[key] = absent
        return
    tool = lab.everywhen("everywhen-tap")
    tool.create()
    found: dict[tuple[str, str], list[Writes]] = defaultdict(list)
    lost: dict[tuple[str, str], int] = defaultdict(int)
    with ExitStack() as stack:
        guests: dict[str, Guest] = {}
        protections: dict[str, Protection] = {}
        for number, case in enumerate(_CASES):
            image = make_disk(lab.work / "image" / f"tap{number}.raw", lab.plan.tap_disk, "tap")
            guests[case] = stack.enter_context(Guest(image))
            if case == NULL:
                stack.enter_context(NullSink(guests[case]))
            elif case != NO_TAP:
                new = Protection.of(lab, tool, f"tap{number}", guests[case], "--seal-every", "24h")
                protections[case] = stack.enter_context(new)
        for number in range(lab.plan.tap_rounds):
            for work, _ in WORKS:
                for case in _CASES[number % 4 :] + _CASES[: number % 4]:
                    protection = protections.get(case)
                    with protection.held() if protection is not None and case == SINK else nullcontext():
                        found[(work.name, case)].append(_written(lab, guests[case], case, work))
                        whole = protection is None or protection.receives()
                    if protection is not None:
                        lost[(work.name, case)] += not whole
                        _caught_up(protection)
        for case, protection in protections.items():
            protection.stop()
            prove_newest(tool, protection.vm, guests[case].image)
    for guest in guests.values():
        guest.image.unlink()
    forget(lab, tool)
    _report(lab, found, lost)


def _caught_up(protection: Protection) -> None:
    """Wait until nothing is left to be shipped or sealed: the next case is to have the machine for itself."""
    protection.followed()
    protection.ask({"wish": "ship"})
    protection.ask({"wish": "mark", "text": "written"})


def _written(lab: Lab, guest: Guest, case: str, work: Work) -> Writes:
    with Fio(guest, work, lab.plan.tap_seconds, warm_s=min(1.0, lab.plan.tap_seconds)) as fio:
        writes = fio.end()
    lab.log(f"   {case}: {work.name}: {writes.rate:,.0f}/s, p99 {writes.p99:.0f} µs")
    return writes


def _report(lab: Lab, found: dict[tuple[str, str], list[Writes]], lost: dict[tuple[str, str], int]) -> None:
    rows: list[tuple[str, ...]] = []
    for work, key in WORKS:
        if lost[(work.name, SINK)]:
            lab.results.missing[key] = f"capture was lost in {lost[(work.name, SINK)]} of {lab.plan.tap_rounds} runs"
        else:
            lab.results.values[key] = _against(found, work, SINK, NULL)
        for case in _CASES:
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
                    "" if case in (NO_TAP, NULL) else f"{_against(found, work, case, NULL):.2f}",
                    str(lost[(work.name, case)] or ""),
                )
            )
    plan = lab.plan
    text = (
        f"fio over NBD to a qemu-storage-daemon with a raw disk of {plan.tap_disk >> 20} MiB (O_DIRECT, aio=native), "
        f"{plan.tap_seconds:g} s each after one that does not count, data that can be compressed by half; {plan.tap_rounds} "
        "rounds, medians; ratios are medians of those of each round, in which all cases follow one another. fio, the daemon "
        "and what receives share the processors. All taps are attached by the same code: granularity 4 KiB. *Sink and spool*: "
        "`protect` is stopped (SIGSTOP) while the guest writes; targets are judged by it. *All of it*: what was written is "
        "shipped and sealed meanwhile, with a point for every 100,000 writes or 256 MiB. *Lost*: in how many rounds it was."
    )
    lab.results.sections.append(Section("P5: what a tap costs the guest", text, _HEADER, rows))


def _against(found: dict[tuple[str, str], list[Writes]], work: Work, case: str, other: str) -> float:
    """The median over all rounds of what `case` reached of `other`."""
    pairs = zip(found[(work.name, case)], found[(work.name, other)], strict=True)
    return statistics.median(mine.rate / theirs.rate for mine, theirs in pairs)
