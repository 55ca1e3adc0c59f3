# SPDX-License-Identifier: AGPL-3.0-or-later
"""P5c: bytes that capture stores for each byte that the guest changed, in the journal and in sealed points."""

from __future__ import annotations

import os
import random
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from bench.guest import DISK, PAGE, Guest, make_disk, missing
from bench.lab import Lab
from bench.proof import WrongResult
from bench.protection import Protection, forget, prove_newest
from bench.results import Section
from bench.tools import Everywhen
from everywhen.nbd.connection import NbdConnection

_DEPTH = 16
_HOT_SHARE, _LOG_SHARE = 32, 64
"""Parts of the disk of which one is hot, and of which one is the log."""
_HEADER = (
    "writes",
    "a point: written MB",
    "of it different MB",
    "journal MB",
    "sealed MB",
    "journal / written",
    "sealed / different",
    "first point",
    "last point",
    "`stats`: journal / written",
    "`stats`: sealed / different",
)

Writes = Iterator[tuple[int, int]]
"""Offsets and lengths."""


@dataclass(frozen=True, slots=True)
class _Point:
    """Bytes: what the guest wrote since the point before, how much of the disk that was, and what was stored for it."""

    written: int
    different: int
    journal: int
    sealed: int


def measure(lab: Lab) -> None:
    """Three guests; each writes, makes a point, and so on; random bytes, which cannot be compressed."""
    keys = ("P5c cold", "P5c hot")
    if (absent := missing()) is not None:
        lab.results.missing |= dict.fromkeys(keys, absent)
        return
    plan = lab.plan
    kinds: list[tuple[str, Callable[[random.Random, int], Writes]]] = [
        ("random 4 KiB, cold", lambda chance, _: _cold(chance, plan.stored_disk, plan.stored_writes)),
        ("random 4 KiB, hot, and a log", lambda chance, number: _hot(chance, number, plan.stored_disk, plan.stored_hot)),
        ("sequential 256 KiB", lambda _, number: _sequential(number, plan.stored_disk, plan.stored_hot * PAGE)),
    ]
    rows = []
    for name, writes in kinds:
        points, said = _captured(lab, name, writes)
        worst = [
            max(point.sealed / point.different for point in points),
            max(point.journal / point.written for point in points),
        ]
        lab.log(f"   {name}: sealed {worst[0]:.2f}, journal {worst[1]:.2f} at worst")
        for key, kind in zip(keys, kinds, strict=False):
            if kind[0] == name:
                lab.results.values[key] = worst[0]
        rows.append((*_row(name, points), f"{said['journal_per_written']:.2f}", f"{said['sealed_per_different']:.2f}"))
    text = (
        f"A disk of {plan.stored_disk >> 20} MiB, all written before; {plan.stored_points} points; hot are "
        f"{plan.stored_disk // _HOT_SHARE >> 20} MiB of it. A block that is changed again is stored with what was changed "
        "in it before, while that is less than all of it: so hot blocks cost more. *Different* counts a page of 4 KiB once, "
        "however often it was written between two points. Journal and sealed are the growth of those files of the repository "
        "(the first copy left out; what lies twice is counted twice). Targets are judged by the worst point. What `everywhen "
        "stats` says is of all points together, from what the program wrote down itself: both must agree."
    )
    lab.results.sections.append(Section("P5c: bytes stored for bytes changed", text, _HEADER, rows))


def _captured(lab: Lab, name: str, writes: Callable[[random.Random, int], Writes]) -> tuple[list[_Point], dict[str, float]]:
    """Figures of each point, and what `stats` says of all. Raises WrongResult."""
    tool = lab.everywhen("everywhen-stored")
    tool.create()
    image = make_disk(lab.work / "image" / "stored.raw", lab.plan.stored_disk, "stored")
    chance = random.Random(f"P5c {name}")
    points = []
    with Guest(image) as guest, Protection.of(lab, tool, "stored", guest, "--seal-every", "24h") as protection:
        journal, sealed = _sizes(tool)
        for number in range(lab.plan.stored_points):
            with NbdConnection(str(guest.nbd), DISK, timeout=30) as connection:
                written, different = _write(connection, chance, writes(chance, number))
            protection.ask({"wish": "ship"})
            protection.ask({"wish": "mark", "text": f"point {number}"})
            now = _sizes(tool)
            points.append(_Point(written, different, now[0] - journal, now[1] - sealed))
            journal, sealed = now
        protection.stop()
    prove_newest(tool, "stored", image)
    said = tool.amplification()
    _agree(name, points, said)
    image.unlink()
    forget(lab, tool)
    return points, said


def _agree(name: str, points: list[_Point], said: dict[str, float]) -> None:
    """Raises WrongResult unless `stats` counts what was counted here."""
    for what in ("written", "different", "journal", "sealed"):
        counted = sum(getattr(point, what) for point in points)
        # Nobody's writes: segments' headers, marks, and with each point its document and the minutes.
        beside = 0.01 * counted + 4_096 * len(points) if what in ("journal", "sealed") else 0
        if abs(said[f"{what}_bytes"] - counted) > beside:
            raise WrongResult(f"{name}: stats says {said[f'{what}_bytes']} bytes {what}, and {counted} were counted")


def _write(connection: NbdConnection, chance: random.Random, writes: Writes) -> tuple[int, int]:
    """Do all, several at once unless they overlap; bytes written, and bytes of different pages."""
    pages: set[int] = set()
    under_way: list[tuple[int, range]] = []
    written = 0
    for offset, length in writes:
        mine = range(offset // PAGE, -(-(offset + length) // PAGE))
        while len(under_way) >= _DEPTH or any(mine.start < other.stop and other.start < mine.stop for _, other in under_way):
            connection.answer(under_way.pop(0)[0])
        under_way.append((connection.send(offset, chance.randbytes(length)), mine))
        pages.update(mine)
        written += length
    for cookie, _ in under_way:
        connection.answer(cookie)
    return written, len(pages) * PAGE


def _cold(chance: random.Random, disk: int, writes: int) -> Writes:
    for page in chance.sample(range(disk // PAGE), writes):
        yield page * PAGE, PAGE


def _hot(chance: random.Random, number: int, disk: int, writes: int) -> Writes:
    """Pages of a small part of the disk, and after each few of them a piece of a log that begins again at its end."""
    log = disk // _LOG_SHARE
    at = count(number * writes // 4)
    for done in range(writes):
        yield log + chance.randrange(disk // _HOT_SHARE // PAGE) * PAGE, PAGE
        if done % 4 == 3:
            yield next(at) * PAGE % log, PAGE


def _sequential(number: int, disk: int, size: int) -> Writes:
    length = 256 << 10
    for offset in range(number * size, (number + 1) * size, length):
        yield offset // length * length % disk, length


def _sizes(tool: Everywhen) -> tuple[int, int]:
    """Bytes of the repository's journals, and of all else in it."""
    journals = tool.places.repository / "journals"
    found = [Path(folder, name) for folder, _, names in os.walk(journals) for name in names]
    journal = sum(path.lstat().st_size for path in found)
    return journal, tool.stored_bytes() - journal


def _row(name: str, points: list[_Point]) -> tuple[str, ...]:
    def median(what: Callable[[_Point], float]) -> float:
        return statistics.median(what(point) for point in points)

    return (
        name,
        f"{median(lambda point: point.written) / 1e6:.1f}",
        f"{median(lambda point: point.different) / 1e6:.1f}",
        f"{median(lambda point: point.journal) / 1e6:.2f}",
        f"{median(lambda point: point.sealed) / 1e6:.2f}",
        f"{median(lambda point: point.journal / point.written):.2f}",
        f"{median(lambda point: point.sealed / point.different):.2f}",
        f"{points[0].sealed / points[0].different:.2f}",
        f"{points[-1].sealed / points[-1].different:.2f}",
    )
