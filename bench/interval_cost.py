# SPDX-License-Identifier: AGPL-3.0-or-later
"""P5, the other mode: what points at intervals cost the guest's writes, beside no capture and every write, in the same run."""

from __future__ import annotations

from contextlib import ExitStack

from bench.guest import Fio, Guest, Work, await_, make_disk, missing
from bench.lab import Lab
from bench.protection import Protection, forget, prove_newest
from bench.results import Section

WORKS = (Work("16 KiB, random, 200 a second", 16384, 4, rate=200), Work("4 KiB, random, 1 at once", 4096, 1))
NONE, EVERY, APART = "no capture", "every write", "points at intervals"
_CASES = (NONE, EVERY, APART)
_HEADER = ("writes", "case", "writes/s", "p50 µs", "p99 µs", "p99.9 µs", "longest ms", "taps on for the newest point: s")
_PACE = "50M"


class Rounds(Protection):
    """A capture of points at intervals: most of the time it has no sink."""

    def followed(self) -> None:
        await_(lambda: self.state() == "following", f"the first point of {self.vm}; it said: {self.said}", 600)


def measure(lab: Lab) -> None:
    """All cases of a kind of writes one right after the other; each case has a guest of its own."""
    if missing() is not None:
        return
    tool, plan = lab.everywhen("everywhen-interval"), lab.plan
    tool.create()
    images = {case: lab.work / "image" / f"interval{number}.raw" for number, case in enumerate(_CASES)}
    rows: list[tuple[str, ...]] = []
    with ExitStack() as stack:
        guests = {case: stack.enter_context(Guest(make_disk(image, plan.tap_disk, "cost"))) for case, image in images.items()}
        apart = f"{plan.interval_s}s"
        every = stack.enter_context(Protection.of(lab, tool, "every", guests[EVERY], "--seal-every", apart))
        rounds = stack.enter_context(Rounds.of(lab, tool, "apart", guests[APART], "--interval", apart, "--pace", _PACE))
        for work in WORKS:
            for case in _CASES:
                with Fio(guests[case], work, plan.intervals * plan.interval_s) as fio:
                    writes = fio.end()
                lab.log(f"   {case}: {work.name}: p99 {writes.p99:.0f} µs, longest {writes.worst / 1e3:.1f} ms")
                figures = (writes.rate, writes.p50, writes.p99, writes.p999, writes.worst / 1e3)
                tapped = f"{rounds.ask({'wish': 'status'})['tapped_s']:.2f}" if case == APART else ""
                rows.append((work.name, case, *(f"{figure:,.0f}" for figure in figures), tapped))
        for case, protection in ((EVERY, every), (APART, rounds)):
            protection.stop()
            prove_newest(tool, protection.vm, images[case])
    lost = every.lost() + rounds.lost()
    for image in images.values():
        image.unlink()
    forget(lab, tool)
    text = (
        f"fio over NBD to a qemu-storage-daemon with a raw disk of {plan.tap_disk >> 20} MiB (O_DIRECT, aio=native), "
        f"{plan.intervals * plan.interval_s} s each; a point every {plan.interval_s} s in both modes; at intervals what "
        f"changed is read at {_PACE}B/s. Captures were lost {lost} times. No target."
    )
    lab.results.sections.append(Section("P5: points at intervals, and what they cost the guest", text, _HEADER, rows))
