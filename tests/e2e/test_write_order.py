# SPDX-License-Identifier: AGPL-3.0-or-later
"""QEMU writes to the disk first, and to the tap then: what copies stand on (docs/capture.md, "Copies").

A node below the disk holds a write back. Another disk's write, sent to the sink afterwards, arrives there: so the one that is
held back would have, if QEMU sent it to both at once. When it is let go, it follows.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.captures import Capture
from tests.hypervisor import Hypervisor, eventually
from tests.program import Program

MIB = 1 << 20


@pytest.fixture
def hypervisor(tmp_path: Path) -> Iterator[Hypervisor]:
    """Disk vd0 as ever, and `held`, whose writes can be held back."""
    image = tmp_path / "held.raw"
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", image, str(MIB)], check=True)
    more = ["-blockdev", f"driver=file,node-name=held-file,filename={image}"]
    more += ["-blockdev", "driver=blkdebug,node-name=held-gate,image=held-file"]
    more += ["-blockdev", "driver=raw,node-name=held-node,file=held-gate"]
    more += ["-device", "virtio-blk-pci,drive=held-node,id=vd1"]
    with Hypervisor(tmp_path, [MIB], more=more) as running:
        yield running


def test_the_record_follows_the_write(program: Program, hypervisor: Hypervisor) -> None:
    with Capture(program, "web1", hypervisor.qmp, "--pace", "0") as capture:
        capture.followed()
        for event, how in (("pwritev", "-P 7"), ("pwritev_zero", "-z")):
            before, answered = taken(capture), hypervisor.writes_answered(1)
            gate(hypervisor, f"break {event} A")
            hypervisor.io(1, f"aio_write {how} 65536 4096")
            hypervisor.write(0, 0, 4096, 3)
            eventually(lambda before=before: taken(capture) > before, "the other disk's write arrives")  # type: ignore[misc]
            assert (taken(capture), hypervisor.writes_answered(1)) == (before + 1, answered)
            gate(hypervisor, "resume A")
            eventually(lambda before=before: taken(capture) == before + 2, "it arrives when the disk has it")  # type: ignore[misc]
        capture.stop()


def gate(hypervisor: Hypervisor, command: str) -> None:
    hypervisor.monitor.execute("human-monitor-command", {"command-line": f'qemu-io held-gate "{command}"'})


def taken(capture: Capture) -> int:
    """How many records there are now: whoever ships has counted them."""
    capture.ask({"wish": "ship"})
    return int(capture.ask({"wish": "status"})["taken"])
