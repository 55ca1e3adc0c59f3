# SPDX-License-Identifier: AGPL-3.0-or-later
"""P5 and P5b: what capture takes of a host at a steady rate of writes, with sealing and without, and how late it is durable."""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from bench.guest import Fio, Guest, Work, make_disk, missing
from bench.lab import Lab
from bench.measured import ToolFailed
from bench.protection import Protection, cpu_s, forget, prove_newest
from bench.results import Section
from everywhen.capture.counters import DURABLE, TAKEN, Counters

_BLOCK = 16384
_WRITES = 1000
"""A second, of all VMs together."""
_CORES = 2
"""The design's shares are of two processors, however many this machine has."""
_EVERY_S = 0.02
_SEAL_S = 20
SPREAD, HOT = "anywhere", "four of five in a tenth of the disk"
_PLACES = {HOT: "zoned:80/10:20/90", SPREAD: "random"}
_HEADER = (
    "VMs",
    "writes",
    "points",
    "writes/s",
    "sink: %",
    "watchdog: %",
    "protect: %",
    "all: % of 2 cores",
    "µs a write",
    "durable after: s (median)",
    "99 %",
    "worst",
)


@dataclass
class _Taken:
    """What was measured over all windows: seconds, writes, processor seconds by kind of process, and lags in seconds."""

    seconds: float = 0.0
    writes: int = 0
    cpu: dict[str, float] = field(default_factory=dict)
    lags: list[float] = field(default_factory=list)

    def share(self, *kinds: str) -> float:
        """Per cent of two processors that these kinds of processes had, or all."""
        return 100 * sum(self.cpu[kind] for kind in kinds or self.cpu) / self.seconds / _CORES


def measure_one(lab: Lab) -> None:
    """P5, one VM."""
    _measure(lab, "P5", 1)


def measure_five(lab: Lab) -> None:
    """P5b, five VMs with a fifth of the writes each."""
    _measure(lab, "P5b", 5)


def _measure(lab: Lab, measure: str, vms: int) -> None:
    keys = [f"{measure} {name}" for name in ("host", "sealing", "lag")]
    if (absent := missing()) is not None:
        lab.results.missing |= dict.fromkeys(keys, absent)
        return
    rows: list[tuple[str, ...]] = []
    for places in (HOT, SPREAD):
        idle, alone, sealing = _loaded(lab, vms, places)
        if not rows:
            rows.append(_row(vms, "none", "none", idle))
        rows += [_row(vms, places, "none", alone), _row(vms, places, f"every {_SEAL_S} s", sealing)]
        if places == HOT:
            worst = max(alone.lags + sealing.lags)
            lab.results.values |= dict(zip(keys, (alone.share(), sealing.share(), worst), strict=True))
    plan = lab.plan
    whole = plan.load_windows * plan.load_window_s
    text = (
        f"{_WRITES // vms:,} writes of 16 KiB a second for each of {vms} VMs with a disk of {plan.load_disk >> 20} MiB; "
        "data that can be compressed by half. The share is that of user and system time of all our processes (sink, watchdog, "
        f"protect) over {whole:g} s: without points in windows of {plan.load_window_s:g} s between two points (256 MiB make a "
        f"point by themselves), or in one with a point every {_SEAL_S} s. The journal is shipped to the repository in both. "
        f"How late writes are durable was looked at every {_EVERY_S * 1e3:.0f} ms. Targets are judged by the writes of which "
        f"{HOT} lie; with writes anywhere most blocks of the disk are sealed again for each point."
    )
    lab.results.sections.append(
        Section(f"{measure}: what {vms} VM{'s take' if vms > 1 else ' takes'} of the host", text, _HEADER, rows)
    )


def _loaded(lab: Lab, vms: int, places: str) -> tuple[_Taken, _Taken, _Taken]:
    """Without writes; with them, without points, and with; every disk is proved after each."""
    tool = lab.everywhen("everywhen-load")
    tool.create()
    first = make_disk(lab.work / "image" / "load-0.raw", lab.plan.load_disk, "load")
    images = [first, *(first.with_name(f"load-{number}.raw") for number in range(1, vms))]
    for image in images[1:]:
        image.write_bytes(first.read_bytes())
    found, idle = [], _Taken()
    for windows, window_s, seal in (
        (lab.plan.load_windows, lab.plan.load_window_s, "24h"),
        (1, lab.plan.load_windows * lab.plan.load_window_s, f"{_SEAL_S}s"),
    ):
        with ExitStack() as stack:
            guests = [stack.enter_context(Guest(image)) for image in images]
            protections = [
                stack.enter_context(Protection.of(lab, tool, f"load{number}", guest, "--seal-every", seal))
                for number, guest in enumerate(guests)
            ]
            if not idle.seconds:
                _window(protections, lab.plan.load_window_s, idle)
            work = Work(places, _BLOCK, 16, rate=_WRITES // vms, places=_PLACES[places])
            writers = [stack.enter_context(Fio(guest, work, 3600, warm_s=0)) for guest in guests]
            time.sleep(min(3.0, window_s))  # until all of them write evenly
            taken = _Taken()
            for _ in range(windows):
                if windows > 1:
                    for protection in protections:
                        protection.ask({"wish": "mark", "text": "window"})
                _window(protections, window_s, taken)
            for fio in writers:
                fio.stop()
            for number, protection in enumerate(protections):
                protection.stop()
                if protection.lost():
                    raise ToolFailed(f"capture was lost: {protection.said}")
                prove_newest(tool, protection.vm, images[number])
        lab.log(f"   {vms} VMs, {places}, points {seal}: {taken.share():.2f} % of 2 cores, worst lag {max(taken.lags):.2f} s")
        found.append(taken)
    for image in images:
        image.unlink()
    forget(lab, tool)
    return idle, found[0], found[1]


def _window(protections: Sequence[Protection], seconds: float, taken: _Taken) -> None:
    """Measure for so long, and add it to `taken`."""
    processes = [protection.processes() for protection in protections]

    def used() -> dict[str, float]:
        try:
            return {kind: sum(cpu_s(found[kind]) for found in processes) for kind in processes[0]}
        except FileNotFoundError as error:
            said = " ".join(protection.said for protection in protections)
            raise ToolFailed(f"a process of ours ended; they said: {said}") from error

    with ExitStack() as stack:
        lags = [stack.enter_context(_Lag(protection)) for protection in protections]
        began, before, first = time.monotonic(), used(), sum(lag.taken for lag in lags)
        time.sleep(seconds)
        for kind, after in used().items():
            taken.cpu[kind] = taken.cpu.get(kind, 0.0) + after - before[kind]
        taken.seconds += time.monotonic() - began
        taken.writes += sum(lag.taken for lag in lags) - first
    for lag in lags:
        taken.lags += lag.seen


class _Lag:
    """Looks again and again how old the oldest write is that is not durable."""

    def __init__(self, protection: Protection) -> None:
        self._counters: Counters = protection.counters()
        self.seen: list[float] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)

    @property
    def taken(self) -> int:
        """The sequence number after the newest record."""
        return self._counters.get(TAKEN)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ending.set()
        self._thread.join()
        self._counters.close()

    def _run(self) -> None:
        # (number after the newest record, when that was seen): a record came at the latest when its number was passed.
        passed: deque[tuple[int, float]] = deque()
        begin = self.taken
        while not self._ending.wait(_EVERY_S):
            # Durable first: what comes between the two must not count as late.
            durable, taken, now = self._counters.get(DURABLE), self.taken, time.monotonic()
            passed.append((taken, now))
            while passed and passed[0][0] <= durable:
                passed.popleft()
            if durable >= begin:
                self.seen.append(now - passed[0][1] if passed else 0.0)


def _row(vms: int, places: str, points: str, taken: _Taken) -> tuple[str, ...]:
    lags = sorted(taken.lags)
    return (
        str(vms),
        places,
        points,
        f"{taken.writes / taken.seconds:,.0f}",
        *(f"{taken.share(kind):.2f}" for kind in ("sink", "watchdog", "protect")),
        f"{taken.share():.2f}",
        f"{1e6 * sum(taken.cpu.values()) / taken.writes:.1f}" if taken.writes else "",
        f"{statistics.median(lags):.2f}",
        f"{lags[len(lags) * 99 // 100]:.2f}",
        f"{lags[-1]:.2f}",
    )
