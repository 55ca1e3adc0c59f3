# SPDX-License-Identifier: AGPL-3.0-or-later
"""P4: a moment of a large disk with a long history is opened as a device, and read; beside who else can open a backup.

The disk is sparse, with one stretch of real data in it. borg and restic have that stretch alone, as a file: they would read all
of the disk. qemu-nbd serves the disk itself, which is no backup: what a device can give at most.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

from bench.changes import PAGE, change
from bench.guest import await_
from bench.lab import Lab
from bench.library import opened
from bench.measured import ToolFailed, settle
from bench.proof import WrongResult
from bench.reads import PARTS, Reader, Reads, missing
from bench.results import Section
from bench.tools import PASSPHRASE, Borg, Everywhen, Restic
from everywhen.nbd.connection import NbdConnection
from everywhen.services.backup import BackupOrder, back_up
from everywhen.services.catalog import read_catalog
from everywhen.services.times import rfc3339
from everywhen.storage.posix import PosixStore

VM = "opened"
_PATIENCE_S = 60.0
_HEADER = ("tool", "opened and 4 KiB read: ms", "random 4 KiB, 128 MiB: /s", "random 4 KiB, all: /s", "in order, 1 MiB: MB/s")


KEYS = ("P4 open", "P4 cached", "P4 beside", "P4 sequential")


@dataclass(frozen=True, slots=True)
class _Disk:
    """The sparse image, and where its data lie."""

    image: Path
    start: int
    length: int

    def stamp(self, number: int) -> bytes:
        """The first page of the data at a point: of each point another one."""
        return blake2b(number.to_bytes(8, "big")).digest() * (PAGE // 64)


def measure(lab: Lab) -> None:
    """All tools one after the other: each alone with the machine."""
    if (absent := missing()) is not None:
        lab.results.missing |= dict.fromkeys(KEYS, absent)
        return
    disk = _sparse(lab)
    tool = lab.everywhen("everywhen-opened")
    tool.create()
    points = _history(lab, tool, disk)
    # A socket's name has at most 107 bytes: not below the work folder.
    with tempfile.TemporaryDirectory(prefix="ewb-") as folder:
        starting, openings, reads = _ours(lab, folder, tool, disk, points)
        image_reads = _qemu_nbd(lab, folder, disk)
    rows = [("everywhen serve nbd", f"{statistics.median(openings) * 1e3:.0f} (worst {max(openings) * 1e3:.0f})", *reads.shown)]
    rows.append(("qemu-nbd, the image itself", "", *image_reads.shown))
    rows += [_mounted(lab, other, disk) for other in lab.tools.values() if isinstance(other, Borg | Restic)]
    tool.clear()
    disk.image.unlink()
    values = (statistics.median(openings), *reads.values)
    lab.results.values |= dict(zip(KEYS, values, strict=True))
    plan = lab.plan
    text = (
        f"A disk of {plan.sparse_image / 1e9:,.0f} GB with {plan.opened_data / 1e9:.1f} GB of real data and {len(points):,} "
        f"points, {plan.writes_a_point} random writes of 4 KiB before each. Opened: {len(openings)} moments of all times, by "
        "point and by time, each for the first time, from the client's connecting to the first 4 KiB, by a server that runs "
        f"(it starts in {starting:.2f} s); the bytes were compared. Random reads: fio, {plan.opened_seconds:g} s each, 16 at "
        "once, over NBD or (borg, restic) in a mounted file, which had the stretch of data alone, and of which the kernel "
        "keeps what was read (over NBD fio asks the server each time); before each the server was started anew and the "
        "machine's cache dropped, where that is allowed. borg and restic: from the start of the mount."
    )
    lab.results.sections.append(Section("P4: opening a moment", text, _HEADER, rows))


def _sparse(lab: Lab) -> _Disk:
    """The image: the data, copied from the main image, in the middle of nothing."""
    image = lab.work / "image" / "opened.raw"
    image.parent.mkdir(exist_ok=True)
    disk = _Disk(image, lab.plan.sparse_image // 2, lab.plan.opened_data)
    with lab.main_image().open("rb") as source, image.open("wb") as target:
        target.truncate(lab.plan.sparse_image)
        target.seek(disk.start)
        _copy(source, target, disk.length)
    return disk


def _copy(source: BinaryIO, target: BinaryIO, length: int) -> None:
    """The next so many bytes, or what there is."""
    while length and (part := source.read(min(length, 4 << 20))):
        target.write(part)
        length -= len(part)


def _history(lab: Lab, tool: Everywhen, disk: _Disk) -> list[tuple[str, str]]:
    """(point, time) of the points, oldest first: made in one process through the library, but for the first."""
    _stamp(disk, 0)
    _, first = tool.back_up(VM, disk.image)
    listed = lab.work / "changed.json"
    since = first.partition("@")[2]
    with opened(PosixStore(str(tool.places.repository)), PASSPHRASE, tool.cache) as repository:
        for number in range(1, lab.plan.points + 1):
            change(disk.image, f"P4 {number}", lab.plan.writes_a_point, listed, only_data=True)
            _stamp(disk, number)
            told = [one for one in json.loads(listed.read_text()) if one["start"] != disk.start]
            listed.write_text(json.dumps([*told, {"start": disk.start, "length": PAGE}]))
            order = BackupOrder(VM, {"vda": str(disk.image)}, tool.cache, changed_blocks={"vda": str(listed)}, since=since)
            since = back_up(repository, read_catalog(repository), order, lambda _done, _total: None).point.point
        return [(point.point, rfc3339(point.time_ns)) for point in read_catalog(repository).points]


def _stamp(disk: _Disk, number: int) -> None:
    with disk.image.open("r+b") as file:
        file.seek(disk.start)
        file.write(disk.stamp(number))


def _ours(
    lab: Lab, folder: str, tool: Everywhen, disk: _Disk, points: list[tuple[str, str]]
) -> tuple[float, list[float], Reads]:
    """Seconds until a server was ready, seconds of each opening, and reads of the newest point."""
    path = Path(folder) / "ours"
    command = [tool.program, "serve", "nbd", "--socket", str(path)]
    openings: list[float] = []
    with _server(command, path, tool.env) as starting:
        for number in random.Random("P4").sample(range(len(points)), min(lab.plan.openings, len(points))):
            name = points[number][number % 2]
            began = time.perf_counter()
            connection = NbdConnection(str(path), f"{VM}/vda@{name}", timeout=_PATIENCE_S)
            first = connection.answer(connection.ask(disk.start, PAGE)).data
            openings.append(time.perf_counter() - began)
            connection.close()
            if first != disk.stamp(number):
                raise WrongResult(f"{VM}/vda@{name} was opened, and is not what was backed up")
        _prove(path, f"{VM}/vda@latest", disk)
    reader = Reader(["--ioengine=nbd", f"--uri=nbd+unix:///{VM}/vda@latest?socket={path}"], disk.start, disk.length)
    reads = Reads()
    for part in PARTS:
        with _server(command, path, tool.env):  # each begins with an empty cache
            settle("cold" if lab.cold else "warm", [tool.places.repository])
            reads.take(part, reader.run(part, lab.plan.opened_seconds))
    lab.log(f"   opened in {statistics.median(openings) * 1e3:.0f} ms; reads {reads.shown}")
    return starting, openings, reads


def _prove(path: Path, name: str, disk: _Disk) -> None:
    """Raises WrongResult unless what is read at random is what the image has."""
    chance = random.Random("proof")
    connection = NbdConnection(str(path), name, timeout=_PATIENCE_S)
    with disk.image.open("rb") as file:
        for _ in range(500):
            offset = disk.start + chance.randrange(disk.length - PAGE)
            file.seek(offset)
            if connection.answer(connection.ask(offset, PAGE)).data != file.read(PAGE):
                raise WrongResult(f"{name}: byte {offset} and on is not what was backed up")
    connection.close()


def _qemu_nbd(lab: Lab, folder: str, disk: _Disk) -> Reads:
    path = Path(folder) / "qemu"
    reader = Reader(["--ioengine=nbd", f"--uri=nbd+unix:///?socket={path}"], disk.start, disk.length)
    reads = Reads()
    for part in PARTS:
        with _server(["qemu-nbd", "-r", "-t", "-e", "8", "-f", "raw", "-k", str(path), str(disk.image)], path, {}):
            settle("cold" if lab.cold else "warm", [disk.image])
            reads.take(part, reader.run(part, lab.plan.opened_seconds))
    return reads


def _mounted(lab: Lab, tool: Borg | Restic, disk: _Disk) -> tuple[str, ...]:
    """borg or restic: the stretch of data as a file, backed up once, mounted."""
    own = tool.elsewhere(lab.work / f"{tool.name}-opened")
    own.create()
    stretch = lab.work / "image" / "stretch.raw"
    with disk.image.open("rb") as source, stretch.open("wb") as target:
        source.seek(disk.start)
        _copy(source, target, disk.length)
    _, backup = own.back_up(VM, stretch)
    place = own.places.root / "mounted"
    place.mkdir(exist_ok=True)
    if isinstance(own, Borg):
        command, file = [own.program, "mount", "--foreground", f"::{backup}", str(place)], place / stretch.name
    else:
        command, file = [own.program, "mount", str(place)], place / "ids" / backup[:8] / stretch.name
    reader = Reader(["--ioengine=psync", f"--filename={file}", "--readonly"], 0, disk.length)
    reads, openings = Reads(), []
    for part in PARTS:
        settle("cold" if lab.cold else "warm", [own.places.repository])
        began = time.perf_counter()
        with _mount(command, place, file, own.env):
            with file.open("rb") as mounted:
                first = mounted.read(PAGE)
            openings.append(time.perf_counter() - began)
            if first != disk.stamp(lab.plan.points):
                raise WrongResult(f"{own.name}: the mounted file is not what was backed up")
            reads.take(part, reader.run(part, lab.plan.opened_seconds))
    own.clear()
    stretch.unlink()
    return (f"{own.name} mount", f"{statistics.median(openings) * 1e3:.0f}", *reads.shown)


@contextmanager
def _server(command: list[str], path: Path, env: Mapping[str, str]) -> Iterator[float]:
    """Runs a server while the body does; seconds until it answered at its socket. Raises ToolFailed."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command, env=dict(env) or None, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        await_(lambda: _answers(process, path), f"{command[0]} answers")
        yield time.perf_counter() - began
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(_PATIENCE_S)
        path.unlink(missing_ok=True)


def _answers(process: subprocess.Popen[bytes], path: Path) -> bool:
    if process.poll() is not None:
        raise ToolFailed(f"a server ended with {process.returncode}")
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@contextmanager
def _mount(command: list[str], place: Path, file: Path, env: Mapping[str, str]) -> Iterator[None]:
    """A mounted backup while the body runs. Raises ToolFailed."""
    process = subprocess.Popen(
        command, env=dict(env), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        await_(file.exists, f"{command[0]} has mounted {place}")
        yield
    finally:
        # Not by a signal: borg took none to heart.
        subprocess.run(["fusermount3" if shutil.which("fusermount3") else "fusermount", "-u", str(place)], check=False)
        process.wait(_PATIENCE_S)
