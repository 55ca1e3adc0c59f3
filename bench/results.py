# SPDX-License-Identifier: AGPL-3.0-or-later
"""What came out: one value for each target of the design (section 7), and a table for each kind of work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from bench.measured import CacheState, Series

Unit = Literal["x", "of", "s", "ms", "MB", "MB/s", "/s", "%", "load", "share", "done"]

_MINIMA: tuple[Unit, ...] = ("of", "%", "share", "/s", "MB/s")


@dataclass(frozen=True, slots=True)
class Target:
    """One line of the design's table. `limit` is a maximum, except for the units in `_MINIMA`."""

    key: str
    measure: str
    work: str
    unit: Unit
    limit: float

    def reached(self, value: float) -> bool:
        """Whether `value` is good enough."""
        if self.unit in _MINIMA:
            return value >= self.limit
        return value <= self.limit

    def show(self, value: float) -> str:
        """A value in this target's unit."""
        return {
            "x": f"{value:.2f} ×",
            "of": f"{value:.2f} ×",
            "s": f"{value:.2f} s",
            "ms": f"{value * 1e3:.0f} ms",
            "/s": f"{value:,.0f}/s",
            "MB/s": f"{value:,.0f} MB/s",
            "MB": f"{value:.0f} MB",
            "%": f"{value:.1f} %",
            "load": f"{value:.2f} % of 2 cores",
            "share": f"{value:.2f} of the line",
            "done": f"done in {value:.0f} s",
        }[self.unit]

    @property
    def demand(self) -> str:
        """What is asked."""
        if self.unit == "done":
            return "done"
        return f"at {'least' if self.unit in _MINIMA else 'most'} {self.show(self.limit)}"


TARGETS = (
    Target("P1 borg", "P1", "first backup, time against borg", "x", 0.5),
    Target("P1 restic", "P1", "first backup, time against restic", "x", 0.35),
    Target("P1 qemu-img", "P1", "first backup, time against qemu-img convert", "x", 0.95),
    Target("P1 memory", "P1", "first backup, peak memory", "MB", 400),
    Target("P2 time", "P2", "next backup, changed blocks known", "s", 1.0),
    Target("P2 stored", "P2", "next backup, stored bytes against changed bytes", "x", 2.0),
    Target("P2b borg", "P2b", "next backup, changed blocks unknown, time against borg with fixed chunks", "x", 0.6),
    Target("P2c time", "P2c", "next backup of a sparse disk of 1 TB, changed blocks known", "s", 1.0),
    Target("P2c stored", "P2c", "the same, stored bytes against changed bytes", "x", 2.0),
    Target("P3 borg", "P3", "restore, time against borg extract", "x", 0.5),
    Target("P3 restic", "P3", "restore, time against restic restore", "x", 0.35),
    Target("P3 qemu-img", "P3", "restore, time against qemu-img convert", "x", 1.2),
    Target("P3 history", "P8", "restore after many sealed points, time against P3", "x", 1.3),
    Target("P4 open", "P4", "open any moment of a disk of 1 TB with a long history, and read 4 KiB", "ms", 0.1),
    Target("P4 cached", "P4", "then random reads of 4 KiB over NBD, from the cache", "/s", 15_000),
    Target("P4 beside", "P4", "the same, beside the cache", "/s", 4_000),
    Target("P4 sequential", "P4", "the same, in order", "MB/s", 800),
    Target("P4b history", "P4b", "every version of a file of 5 KB in 1,000 points", "s", 2.0),
    Target("P5 4k 1", "P5", "tap: writes/s against nbdkit null, 4 KiB random, 1 at once", "of", 0.85),
    Target("P5 4k 16", "P5", "the same, 16 at once", "of", 0.85),
    Target("P5 4k seq", "P5", "the same, 4 KiB sequential, 16 at once", "of", 0.85),
    Target("P5 1M seq", "P5", "the same, 1 MiB sequential, 4 at once", "of", 0.85),
    Target("P5 host", "P5", "1,000 writes/s of 16 KiB, 1 VM: processor time of sink, watchdog and protect", "load", 2.0),
    Target("P5 sealing", "P5", "the same, with a point every 20 s", "load", 4.0),
    Target("P5 lag", "P5", "the same: worst time until a write is durable on the host", "s", 1.0),
    Target("P5b host", "P5b", "5 VMs with 200 writes/s of 16 KiB each: processor time as above", "load", 2.0),
    Target("P5b sealing", "P5b", "the same, with a point every 20 s", "load", 4.0),
    Target("P5b lag", "P5b", "the same: worst time until a write is durable on the host", "s", 1.0),
    Target("P5c cold", "P5c", "sealed bytes against different bytes, random 4 KiB over a large area", "x", 1.3),
    Target("P5c hot", "P5c", "the same, a hot set that is rewritten, and a log", "x", 4.0),
    Target(
        "P5d virtnbdbackup", "P5d", "the next point of a libvirt domain, time against an incremental of virtnbdbackup", "x", 1.0
    ),
    Target("P6 done", "P6", "index and marking of 100 million chunks with 1 GB of memory", "done", float("inf")),
    Target("P7 saved", "P7", "clones with small differences: saved against as many times one", "%", 93),
    Target("P7b saved ext4", "P7b", "separately installed VMs (ext4): saved", "%", 85),
    Target("P7b saved XFS", "P7b", "separately installed VMs (XFS): saved", "%", 85),
    Target("P7b saved NTFS", "P7b", "separately installed VMs (NTFS): saved", "%", 85),
    Target("P8 ratio", "P8", "restore the newest point against the oldest (the slower over the faster)", "x", 1.1),
    Target("P9 share", "P9", "restore from a store 30 ms away", "share", 0.6),
)

MEASURES = tuple(dict.fromkeys(target.measure for target in TARGETS))
"""What `--only` can name. P2, P2b and P3 with P8 share their repositories."""


@dataclass
class Section:
    """A table of the report, with what must be said beside it."""

    title: str
    text: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass
class Results:
    """Everything that was measured; `missing` says why a target has no value."""

    values: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    sections: list[Section] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """Failures and wrong results: the run as a whole has failed."""

    def drop(self, measure: str, reason: str) -> None:
        """Take back all that a measure has said: it failed."""
        self.wrong.append(f"{measure}: {reason}")
        for target in TARGETS:
            if target.measure == measure:
                self.values.pop(target.key, None)
                self.missing[target.key] = f"failed: {reason}"


HEADER = (
    "tool",
    "cache",
    "seconds (median)",
    "fastest to slowest",
    "processor s",
    "peak MB",
    "then to disk s",
    "times Everywhen",
)
"""Columns of `timing_rows`."""


def timing_rows(measured: dict[tuple[str, CacheState], Series], subject: str) -> list[tuple[str, ...]]:
    """A row for each tool and state of the cache, with its ratio to `subject` in the same state."""
    rows: list[tuple[str, ...]] = []
    for (name, cache), series in measured.items():
        ours = measured[(subject, cache)].wall_s
        ratio = "" if name == subject else f"{series.wall_s / ours:.2f}"
        row = (name, cache, f"{series.wall_s:.2f}", series.spread, f"{series.cpu_s:.2f}")
        rows.append((*row, f"{series.peak_bytes / 1e6:.0f}", f"{series.sync_s:.2f}", ratio))
    return rows


def in_order(measured: dict[tuple[str, CacheState], Series], subject: str) -> dict[tuple[str, CacheState], Series]:
    """Cold before warm, the subject's own first, else as they came first: rounds turn the order of tools."""
    names = list(dict.fromkeys(name for name, _ in measured))
    names.sort(key=lambda name: not name.startswith(subject))
    return {key: measured[key] for key in sorted(measured, key=lambda key: (key[1] == "warm", names.index(key[0])))}


def ratio(
    measured: dict[tuple[str, CacheState], Series], subject: str, other: str, states: Sequence[CacheState]
) -> tuple[float | None, CacheState]:
    """Time of `subject` over time of `other`, in the first of `states` in which both were measured."""
    for state in states:
        if (subject, state) in measured and (other, state) in measured:
            return measured[(subject, state)].wall_s / measured[(other, state)].wall_s, state
    return None, states[-1]
