# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether taps have forwarded every write is asked of the bitmaps of their jobs, wherever QEMU keeps these."""

from __future__ import annotations

from typing import Any, cast

import pytest

from everywhen.capture.nodes import DiskNode
from everywhen.capture.qmp import Monitor
from everywhen.capture.tap import Tap, all_stand
from everywhen.formats.fields import Json

NODE, FILTER = "node0", "everywhen-filter-0"
OURS = {"granularity": 4096, "count": 4096, "recording": False}


class Qemu:
    """With a tap on one disk."""

    def __init__(self, bitmaps: dict[str, list[Json]], status: str = "standby") -> None:
        self.bitmaps, self.status = bitmaps, status
        self.nodes = [NODE, FILTER]

    def execute(self, name: str, _arguments: Json | None = None) -> Any:
        if name == "query-block-jobs":
            return [{"device": "everywhen-tap-0", "type": "mirror", "status": self.status, "offset": 0}]
        image = {"virtual-size": 512}
        return [
            {"node-name": node, "drv": "raw", "image": image, "dirty-bitmaps": self.bitmaps.get(node, [])}
            for node in self.nodes
        ]


def stands(qemu: Qemu) -> bool:
    monitor = cast("Monitor", qemu)
    return all_stand(monitor, [Tap(monitor, DiskNode("vda", NODE, 512, iothread=False), 0)])


def test_with_nothing_left_to_send() -> None:
    assert stands(Qemu({}))
    assert stands(Qemu({NODE: [OURS | {"count": 0}]}))
    assert stands(Qemu({NODE: [OURS | {"name": "everywhen-p-1"}]})), "one of ours that records"
    assert stands(Qemu({NODE: [OURS | {"granularity": 65536}]})), "another tool's backup"
    assert not stands(Qemu({}, status="paused"))


@pytest.mark.parametrize("node", [NODE, FILTER])
def test_a_write_that_was_not_sent(node: str) -> None:
    """QEMU 7.2 notes it at the disk's node, 8.2 at the filter (block/mirror.c, mirror_start_job)."""
    assert not stands(Qemu({node: [OURS]}))


@pytest.mark.parametrize("node", [NODE, FILTER])
def test_where_a_node_is_gone_nothing_is_known(node: str) -> None:
    qemu = Qemu({})
    qemu.nodes.remove(node)
    assert not stands(qemu)
