# SPDX-License-Identifier: AGPL-3.0-or-later
"""P4b: every version of a file of 5 KB, found in a long history; and how the time grows with the number of points.

An ext4 of 64 GiB, as deep a block map as a disk of 1 TB has. Before each point a guest does what it does all the time: a file
is written and another one removed, in another folder, so that blocks of inodes and counters change with every point; and
random pages elsewhere. The file itself changes ten times. So does one in that other folder, of which every moment
has to be opened. debugfs writes, so nobody needs to mount anything.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from bench.lab import Lab
from bench.library import opened
from bench.measured import settle
from bench.proof import WrongResult, data_extents
from bench.results import Section
from bench.tools import PASSPHRASE, Everywhen
from everywhen.services.backup import BackupOrder, back_up
from everywhen.services.catalog import read_catalog
from everywhen.storage.posix import PosixStore

VM, KEY = "versions", "P4b history"
_DISK, _NOISE = 64 << 30, 1 << 30
_BLOCK, _PAGE = 65536, 4096
_SIZE = 5_000
_VERSIONS, _RUNS = 10, 5
_FOLDERS = ("etc", "log")
"""Of the file: one in which nothing else happens, and one in which files come and go."""
_HEADER = ("points", "folder", "versions", "moments opened", "seconds: median", "worst")


@dataclass(slots=True)
class _Guest:
    """The disk, what is in its file system's blocks, and what the file had: (point, content) of each version."""

    image: Path
    known: dict[int, bytes] = field(default_factory=dict)
    versions: list[tuple[str, bytes]] = field(default_factory=list)

    def step(self, number: int, content: bytes | None, writes: int) -> list[dict[str, int]]:
        """One point's changes; where the disk is not what it was."""
        new = self.image.with_suffix(".new")
        script = [f"write {self.image.with_suffix('.other')} log/file{number}", f"rm log/file{number - 3}"]
        if content is not None:
            new.write_bytes(content)
            script += [f"{command} {folder}/plan" for folder in _FOLDERS for command in ("rm", f"write {new}")]
        self.debugfs(script)
        chance = random.Random(f"P4b {number}")
        pages = sorted(chance.sample(range((_DISK - _NOISE) // _PAGE, _DISK // _PAGE), writes))
        with self.image.open("r+b") as file:
            for page in pages:
                os.pwrite(file.fileno(), chance.randbytes(_PAGE), page * _PAGE)
        return self._changed() + [{"start": page * _PAGE, "length": _PAGE} for page in pages]

    def debugfs(self, script: list[str]) -> None:
        """Changes of the file system."""
        commands = self.image.with_suffix(".script")
        commands.write_text("\n".join(script))
        subprocess.run([_tool("debugfs"), "-w", "-f", commands, self.image], check=True, capture_output=True)

    def _changed(self) -> list[dict[str, int]]:
        """Blocks of the file system that are not what they were."""
        changed = []
        with self.image.open("rb") as file:
            for start, end in data_extents(file.fileno(), _DISK - _NOISE):
                for at in range(start // _BLOCK * _BLOCK, end, _BLOCK):
                    digest = blake3(os.pread(file.fileno(), _BLOCK, at)).digest()
                    if self.known.get(at) != digest:
                        self.known[at] = digest
                        changed.append({"start": at, "length": _BLOCK})
        return changed


def measure(lab: Lab) -> None:
    """The history is asked for after a quarter, a half, and all of the points."""
    if not (shutil.which(_tool("debugfs")) and shutil.which(_tool("mke2fs"))):
        lab.results.missing[KEY] = "e2fsprogs is not installed"
        return
    tool = lab.everywhen("everywhen-versions")
    tool.create()
    guest = _Guest(lab.work / "image" / "versions.raw")
    _made(guest)
    points, rows = lab.plan.points, []
    asked = sorted({max(points // 4, 1), max(points // 2, 1), points})
    since, done = "", 0
    for count in asked:
        since = _more(lab, tool, guest, range(done, count), since)
        done = count
        rows.append(_asked(lab, tool, guest, (count, "etc", _RUNS)))
    lab.results.values[KEY] = float(rows[-1][4])
    rows.append(_asked(lab, tool, guest, (points, "log", 1)))
    for path in guest.image.parent.glob("versions.*"):
        path.unlink()
    tool.clear()
    text = (
        f"A file of {_SIZE:,} bytes in an ext4 of {_DISK / 1e9:.0f} GB, changed {_VERSIONS} times at most, in a folder of its "
        f"own (`etc`) and in one (`log`) in which a file is written and one removed before each point, beside "
        f"{lab.plan.writes_a_point} random writes elsewhere. `everywhen history`, the whole process, {_RUNS} times each (of "
        "`log` once); the versions were compared with what was written."
    )
    lab.results.sections.append(Section("P4b: the history of a file", text, _HEADER, rows))


def _made(guest: _Guest) -> None:
    """The file system, with the folder."""
    guest.image.parent.mkdir(exist_ok=True)
    guest.image.with_suffix(".other").write_bytes(random.Random("other").randbytes(3_000))
    with guest.image.open("wb") as file:
        file.truncate(_DISK)
    size = f"{(_DISK - _NOISE) // 1024}k"
    options = ["-q", "-t", "ext4", "-J", "size=8", "-E", "lazy_itable_init=1"]
    subprocess.run([_tool("mke2fs"), *options, guest.image, size], check=True, capture_output=True)
    guest.debugfs([f"mkdir {folder}" for folder in _FOLDERS])


def _more(lab: Lab, tool: Everywhen, guest: _Guest, numbers: range, since: str) -> str:
    """More points, made in one process through the library; the id of the last."""
    every = max(lab.plan.points // _VERSIONS, 1)
    listed = lab.work / "changed.json"
    with opened(PosixStore(str(tool.places.repository)), PASSPHRASE, tool.cache) as repository:
        for number in numbers:
            content = random.Random(f"plan {number}").randbytes(_SIZE) if number % every == 0 else None
            changed = guest.step(number, content, lab.plan.writes_a_point)
            listed.write_text(json.dumps(changed))
            known = {"vda": str(listed)} if since else {}
            order = BackupOrder(VM, {"vda": str(guest.image)}, tool.cache, changed_blocks=known, since=since or None)
            since = back_up(repository, read_catalog(repository), order, lambda _done, _total: None).point.point
            if content is not None:
                guest.versions.append((since, content))
    return since


def _asked(lab: Lab, tool: Everywhen, guest: _Guest, what: tuple[int, str, int]) -> tuple[str, ...]:
    """A row of the table: how many points there are, the file's folder, how often. Raises WrongResult."""
    points, folder, runs = what
    command = [tool.program, "history", f"{VM}/vda:/p0/{folder}/plan", "--json"]
    times, found = [], {}
    for _ in range(runs):
        settle("cold" if lab.cold else "warm", [tool.places.repository])
        began = time.perf_counter()
        done = subprocess.run(command, env=tool.env, capture_output=True, check=True)
        times.append(time.perf_counter() - began)
        found = json.loads(done.stdout)
    told = [one["point"] for one in found["versions"]][::-1]
    if told != [point for point, _ in guest.versions]:
        raise WrongResult(f"a history of {points} points has versions at {told}, and was {guest.versions}")
    for (point, content), one in zip(guest.versions, found["versions"][::-1], strict=True):
        got = subprocess.run([tool.program, "cat", one["address"]], env=tool.env, capture_output=True, check=True)
        if got.stdout != content:
            raise WrongResult(f"the version of {point} is not what was written")
    middle = statistics.median(times)
    lab.log(f"   {points} points, {folder}: {middle:.2f} s, {found['opened']} moments opened")
    return f"{points:,}", folder, str(len(told)), str(found["opened"]), f"{middle:.2f}", f"{max(times):.2f}"


def _tool(name: str) -> str:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or name
