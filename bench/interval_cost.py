# SPDX-License-Identifier: AGPL-3.0-or-later
"""P5, the other mode: what points at intervals cost the guest's writes, beside no capture and every write, in the same run."""

from __future__ import annotations

from contextlib import ExitStack

from bench.guest import Fio, Guest, Work, Writes, await_, make_disk, missing
from bench.lab import Lab
from bench.protection import Protection, forget, prove_newest
from bench.results import Section
from bench.tools import Everywhen

WORKS = (Work("16 KiB, random, 200 a second", 16384, 4, rate=200), Work("4 KiB, random, 1 at once", 4096, 1))
NONE, EVERY, APART = "no capture", "every write", "points at intervals"
_CASES = (NONE, EVERY, APART)
_HEADER = ("writes", "case", "writes/s", "p50 µs", "p99 µs", "p99.9 µs", "longest ms", "taps on for the newest point: s")
_PACE = "50M"
_LATE_S = 600


class Rounds(Protection):
    """A capture of points at intervals: most of the time it has no sink."""

    def followed(self) -> None:
        await_(lambda: self._told_s() > 0, f"the first point of {self.vm}; it said: {self.said}", _LATE_S)
        self._first_s = self._told_s()

    def _told_s(self) -> float:
        """For how long the taps stood for the newest point; 0.0 where it does not say."""
        if self.state() != "following":
            return 0.0
        return float(self.ask({"wish": "status"}).get("tapped_s", 0.0))

    def tapped_s(self) -> float:
        """The same, of a point that was made since it was followed. Raises ToolFailed where none is."""
        await_(lambda: self._told_s() not in (0.0, self._first_s), f"another point of {self.vm}; it said: {self.said}", _LATE_S)
        return self._told_s()


def measure(lab: Lab) -> None:
    """All cases of a kind of writes one right after the other. Each has a guest of its own, with no other capture beside it,
    and its last point is made and proved before the next case begins."""
    if missing() is not None:
        return
    tool, plan = lab.everywhen("everywhen-interval"), lab.plan
    tool.create()
    images = {case: lab.work / "image" / f"interval{number}.raw" for number, case in enumerate(_CASES)}
    rows: list[tuple[str, ...]] = []
    lost = 0
    with ExitStack() as stack:
        guests = {case: stack.enter_context(Guest(make_disk(image, plan.tap_disk, "cost"))) for case, image in images.items()}
        for work in WORKS:
            for case in _CASES:
                writes, tapped, times = _captured(lab, tool, case, guests[case], work)
                lost += times
                lab.log(f"   {case}: {work.name}: p99 {writes.p99:.0f} µs, longest {writes.worst / 1e3:.1f} ms")
                figures = (writes.rate, writes.p50, writes.p99, writes.p999, writes.worst / 1e3)
                rows.append((work.name, case, *(f"{figure:,.0f}" for figure in figures), tapped))
    for image in images.values():
        image.unlink()
    forget(lab, tool)
    text = (
        f"fio over NBD to a qemu-storage-daemon with a raw disk of {plan.tap_disk >> 20} MiB (O_DIRECT, aio=native), "
        f"{plan.intervals * plan.interval_s} s each, no other capture beside it; a point every {plan.interval_s} s in both; "
        f"at intervals what changed is read at {_PACE}B/s. Captures were lost {lost} times. No target."
    )
    lab.results.sections.append(Section("P5: points at intervals, and what they cost the guest", text, _HEADER, rows))


def _captured(lab: Lab, tool: Everywhen, case: str, guest: Guest, work: Work) -> tuple[Writes, str, int]:
    """What the guest had, for how many seconds the taps stood (at intervals), and how often capture was lost.

    Raises ToolFailed, WrongResult.
    """
    seconds, apart = lab.plan.intervals * lab.plan.interval_s, f"{lab.plan.interval_s}s"
    if case == NONE:
        return _written(guest, work, seconds), "", 0
    if case == EVERY:
        with Protection.of(lab, tool, "every", guest, "--seal-every", apart) as every:
            writes = _written(guest, work, seconds)
            return writes, "", _ended(tool, every, guest)
    with Rounds.of(lab, tool, "apart", guest, "--interval", apart, "--pace", _PACE) as rounds:
        writes = _written(guest, work, seconds)
        tapped = f"{rounds.tapped_s():.2f}"
        return writes, tapped, _ended(tool, rounds, guest)


def _written(guest: Guest, work: Work, seconds: float) -> Writes:
    with Fio(guest, work, seconds) as fio:
        return fio.end()


def _ended(tool: Everywhen, protection: Protection, guest: Guest) -> int:
    """When all that was written is in a point: how often capture was lost."""
    protection.stop()
    prove_newest(tool, protection.vm, guest.image)
    return protection.lost()
