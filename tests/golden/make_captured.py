# SPDX-License-Identifier: AGPL-3.0-or-later
"""Makes a golden repository of captures: `python -m tests.golden.make_captured format-1-captured`.

Run once when a format of capture is born, as `make.py`. It holds, encrypted and not, two VMs of a group. `gold` was captured
twice, with a gap between: two streams, of some segments each, with writes and zeroes on two disks; points that a person and
the group named; minutes of all that. `NAME.json` has the sums of what the disks held at instants, by whoever wrote them.
"""

from __future__ import annotations

import hashlib
import random
import sys
import time
from pathlib import Path
from typing import Any

from tests.captures import Capture
from tests.golden.make import PASSPHRASE, make, secret
from tests.hypervisor import Hypervisor
from tests.moments import rfc3339
from tests.program import Program

KIB = 1 << 10
SIZES = [192 * KIB, 64 * KIB + 512]


class Written:
    """What the disks of a VM held, and at which instants."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self._hypervisor = hypervisor
        self._chance = random.Random(20261122)
        self.moments: list[dict[str, Any]] = []

    def write(self, count: int) -> None:
        """So many writes; after each the next one is issued in a later microsecond."""
        source = self._hypervisor.folder / "source"
        for _ in range(count):
            disk = self._chance.randrange(len(SIZES))
            length = 512 * self._chance.choice([1, 3, 8, 20])
            offset = self._chance.randrange((SIZES[disk] - length) // 512) * 512
            source.write_bytes((self._chance.randbytes(64) * 160)[:length])
            what = "-z" if self._chance.random() < 0.25 else f"-s {source}"
            self._hypervisor.io(disk, f"write {what} {offset} {length}")

    def note(self) -> None:
        """That the disks hold this now."""
        now = rfc3339(time.time_ns())
        self.moments.append({"time": now, "sha256": self.sums()})

    def sums(self) -> dict[str, str]:
        """Of the disks, by name."""
        return {f"vd{disk}": hashlib.sha256(self._hypervisor.content(disk)).hexdigest() for disk in range(len(SIZES))}


def captured(program: Program, vm: str, hypervisor: Hypervisor) -> Capture:
    return Capture(program, vm, hypervisor.qmp, "--pace", "0", "--seal-every", "1h", "--group", "pair").followed()


def build(folder: Path, encryption: str) -> dict[str, object]:
    if encryption != "none":
        (folder / "pass").write_text(PASSPHRASE + "\n")
    program = Program(folder, "repository", secret(folder))
    made = program.ok("init", program.repo, "--encryption", encryption, "--no-reserve")
    for name in ("gold", "other"):
        (folder / name).mkdir()
    with Hypervisor(folder / "gold", SIZES) as gold, Hypervisor(folder / "other", SIZES) as other:
        first, second = Written(gold), Written(other)
        first.write(5)
        with captured(program, "gold", gold) as one, captured(program, "other", other) as two:
            for _ in range(2):
                first.write(6)
                second.write(3)
                first.note()
                assert one.ask({"wish": "ship"}) == {}
            program.ok("mark", "gold", "mine")
            mine = first.sums()
            first.write(6)
            together = program.ok("mark", "group:pair", "ours")
            ours = {"gold": first.sums(), "other": second.sums()}
            first.write(4)
            first.note()
            first.write(3)
            one.stop()
            first.write(4)  # only a bitmap knows these
            with captured(program, "gold", gold) as one:
                first.write(7)
                first.note()
                first.write(5)
                one.stop()
            two.stop()
        latest = first.sums()
    (numbers,) = program.ok("stats", "gold")["vms"]
    return {
        "recovery_key": made["recovery_key"],
        "made": rfc3339(time.time_ns()),
        "moments": first.moments,
        "mine": mine,
        "ours": {"time": together["time"], "sha256": ours},
        "latest": latest,
        "points": [{"id": point["id"], "time": point["time"]} for point in program.ok("points", "gold")],
        "gaps": program.ok("timeline", "gold")["gaps"],
        "write_amplification": numbers["write_amplification"],
        "last_24_hours": numbers["last_24_hours"],
    }


if __name__ == "__main__":
    make(sys.argv[1], build)
