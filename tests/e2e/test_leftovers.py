# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a killed run left in QEMU is found wherever it is by now."""

from __future__ import annotations

from pathlib import Path

from everywhen.capture import bitmaps, leftovers
from everywhen.capture.nodes import find_disks
from everywhen.capture.qmp import QmpMonitor
from everywhen.formats.ids import PointId
from tests.hypervisor import Hypervisor

MIB = 1 << 20


def test_below_another_tools_filter(tmp_path: Path) -> None:
    with Hypervisor(tmp_path, [MIB]) as running, QmpMonitor.connect(str(running.qmp)) as monitor:
        point = PointId("p-0123456789ab")
        bitmaps.begin(monitor, {"node0": "vd0"}, point)
        bitmaps.freeze(monitor, "node0", bitmaps.recordings(monitor, "node0")[0])
        running.monitor.execute("blockdev-add", {"driver": "null-co", "node-name": "theirs", "size": MIB})
        backup = {"job-id": "theirs", "device": "node0", "target": "theirs", "sync": "none", "filter-node-name": "filter"}
        running.monitor.execute("blockdev-backup", backup)
        assert [disk.node for disk in find_disks(monitor)] == ["filter"]
        leftovers.clear(monitor, answered=False)
        assert running.ours() == {f"everywhen-{point}-vd0"}
