# SPDX-License-Identifier: AGPL-3.0-or-later
"""P5d: the next recovery point of a libvirt domain under capture, against virtnbdbackup's after the same writes.

Two domains with the same disk: a tap and libvirt's backup job cannot be on one disk together. Both domains' processors stand
still; the writes are made by qemu-io through their virtio devices. Needs what the tests of libvirt need (tests/libvirtd.py).
"""

from __future__ import annotations

import random
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench.guest import PAGE, make_disk
from bench.lab import OURS, Lab
from bench.measured import Run
from bench.proof import WrongResult
from bench.protection import Protection, cpu_s, forget
from bench.results import Section
from bench.tools import Everywhen

if TYPE_CHECKING:
    from bench.plan import Plan
    from tests.libvirtd import Guest, Libvirtd

THEIRS = "virtnbdbackup"
_KEY = "P5d virtnbdbackup"
_HEADER = (
    "tool",
    "seconds (median)",
    "fastest to slowest",
    "processor s",
    "stored MB",
    "stored / changed",
    "capture before it: processor s",
)


@dataclass
class _Made:
    """What backups took: wall and processor seconds, bytes; processor seconds from one to the next."""

    walls: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)
    between: list[float] = field(default_factory=list)


def measure(lab: Lab) -> None:
    """A full one of each; then in each round the same writes to both, a point here, an incremental there."""
    reason = _missing()
    if reason is not None:
        lab.results.missing[_KEY] = reason
        return
    from tests.libvirtd import Libvirtd

    plan = lab.plan
    raw = make_disk(lab.work / "image" / "domain.raw", plan.domain_disk, "domain")
    tool = lab.everywhen("everywhen-domain")
    tool.create()
    with Libvirtd() as libvirtd, ExitStack() as stack:
        theirs, ours = (stack.enter_context(_domain(libvirtd, raw, name)) for name in ("theirs", "ours"))
        backup = _Virtnbdbackup(lab, libvirtd.uri, theirs)
        backup.make("full")
        monitor = ["--libvirt", libvirtd.uri, "--domain", ours.name]
        state = libvirtd.folder / "state"  # QEMU, another user, may come there
        protection = stack.enter_context(Protection(lab, tool, "ours", state, monitor, "--seal-every", "24h"))
        made = {OURS: _Made(), THEIRS: _Made()}
        for number in range(plan.domain_points):
            began = _spent(protection)
            _write(random.Random(f"P5d {number}"), [theirs, ours], plan)
            made[OURS].between.append(_spent(protection) - began)
            for name in (OURS, THEIRS) if number % 2 else (THEIRS, OURS):
                if name == OURS:
                    _point(tool, protection, number, made[OURS])
                else:
                    backup.measured(made[THEIRS])
        protection.stop()
        _prove(tool, backup, ours, theirs)
    raw.unlink()
    forget(lab, tool)
    shutil.rmtree(backup.folder)
    _report(lab, made)


def _missing() -> str | None:
    for program in (THEIRS, "libvirtd", "unshare", "qemu-img"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    try:
        import libvirt  # noqa: F401
    except ImportError:
        return "libvirt's Python library is not installed"
    return None


@contextmanager
def _domain(libvirtd: Libvirtd, raw: Path, name: str) -> Iterator[Guest]:
    """A domain with a qcow2 disk that holds what `raw` does: libvirt's incrementals need that format."""
    from tests.libvirtd import Guest

    with Guest(libvirtd, name, [(raw.stat().st_size, "qcow2")]) as guest:
        _qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, guest.images[0])
        guest.start()
        yield guest


class _Virtnbdbackup:
    """virtnbdbackup, as it comes, of one domain."""

    def __init__(self, lab: Lab, uri: str, guest: Guest) -> None:
        self.folder = lab.work / THEIRS
        self.folder.mkdir()
        self._lab = lab
        # It wants a name and a password for any address that has a plus in it; libvirtd asks for none.
        self._there = ["-U", uri, "--user", "-", "--password", "-", "-n"]
        self._command = [THEIRS, "-d", guest.name, *self._there, "-o", str(self.folder)]
        self._env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": str(lab.work)}

    def make(self, level: str) -> Run:
        """A backup: `full` or `inc`."""
        return self._lab.machine.run([*self._command, "-l", level], cwd=self._lab.work, env=self._env)

    def measured(self, made: _Made) -> None:
        """An incremental."""
        before = _bytes_in(self.folder)
        run = self.make("inc")
        made.walls.append(run.wall_s)
        made.cpus.append(run.cpu_s)
        made.stored.append(_bytes_in(self.folder) - before)

    def restore(self, to: Path) -> Path:
        """The newest state of the disk."""
        to.mkdir()
        command = ["virtnbdrestore", *self._there, "-i", str(self.folder), "-o", str(to), "-L", f"{to}.log"]
        self._lab.machine.run(command, cwd=self._lab.work, env=self._env)
        return next(path for path in to.iterdir() if path.name.startswith("vda"))


def _write(chance: random.Random, guests: list[Guest], plan: Plan) -> None:
    """The same random pages to all."""
    pages = chance.sample(range(plan.domain_disk // PAGE), plan.domain_writes)
    noise = chance.randbytes(PAGE * len(pages))
    for guest in guests:
        pattern = guest.folder / "pattern"
        with guest.monitor() as monitor:
            device = monitor.execute("query-block")[0]["qdev"]
            for number, page in enumerate(pages):
                pattern.write_bytes(noise[number * PAGE : (number + 1) * PAGE])
                line = f'qemu-io -d {device} "write -q -s {pattern} {page * PAGE} {PAGE}"'
                said = monitor.execute("human-monitor-command", {"command-line": line})
                if said:
                    raise WrongResult(f"qemu-io: {said}")


def _point(tool: Everywhen, protection: Protection, number: int, made: _Made) -> None:
    before, spent = tool.stored_bytes(), _spent(protection)
    began = time.monotonic()
    protection.ask({"wish": "mark", "text": f"point {number}"})
    made.walls.append(time.monotonic() - began)
    made.cpus.append(_spent(protection) - spent)
    protection.ask({"wish": "ship"})
    made.stored.append(tool.stored_bytes() - before)


def _spent(protection: Protection) -> float:
    return sum(cpu_s(pid) for pid in protection.processes().values())


def _prove(tool: Everywhen, backup: _Virtnbdbackup, ours: Guest, theirs: Guest) -> None:
    """Both restored disks are what the domains have. Raises WrongResult."""
    for guest in (ours, theirs):
        guest.io(0, "flush")  # the format's tables are written late
    mine = tool.restore("ours@latest", "back.raw")[1]
    others = backup.restore(tool.places.root / "theirs")
    for restored, guest, image_format in ((mine, ours, "raw"), (others, theirs, "qcow2")):
        command = ["qemu-img", "compare", "-U", "-f", image_format, "-F", "qcow2", str(restored), str(guest.images[0])]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            raise WrongResult(f"{guest.name}: what was restored differs from the domain's disk")


def _bytes_in(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _qemu_img(*arguments: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True)


def _report(lab: Lab, made: dict[str, _Made]) -> None:
    plan = lab.plan
    lab.results.values[_KEY] = statistics.median(made[OURS].walls) / statistics.median(made[THEIRS].walls)
    rows = [_row(name, one, plan.domain_writes * PAGE) for name, one in made.items()]
    text = (
        f"A libvirt domain with a qcow2 disk of {plan.domain_disk >> 20} MiB, all of it written; {plan.domain_writes:,} random "
        f"writes of 4 KiB before each of {plan.domain_points} points (incompressible). virtnbdbackup: a process for each "
        "incremental, from libvirt's checkpoint to its file, not compressed. Everywhen: a point by `mark` of the capture that "
        "runs; stored bytes with the journal of every single write. What capture had of the processor from one point to the "
        "next, while the writes were made, stands in the last column."
    )
    lab.results.sections.append(Section("P5d: the next point of a domain", text, _HEADER, rows))


def _row(name: str, made: _Made, changed: int) -> tuple[str, ...]:
    stored = statistics.median(made.stored)
    return (
        name,
        f"{statistics.median(made.walls):.2f}",
        f"{min(made.walls):.2f} to {max(made.walls):.2f}",
        f"{statistics.median(made.cpus):.2f}",
        f"{stored / 1e6:.2f}",
        f"{stored / changed:.2f}",
        f"{statistics.median(made.between):.2f}" if made.between else "",
    )
