# SPDX-License-Identifier: AGPL-3.0-or-later
"""How much a copy says that it has to do, of disks whose turn has not come: what a bitmap names is little of a large disk."""

from __future__ import annotations

from typing import Any

import pytest

from everywhen.capture.nodes import DiskNode
from everywhen.capture.qmp import Monitor
from everywhen.formats.ids import PointId
from everywhen.services.protect.bridging import expected

SIZE = 1 << 40
OLD, NEW, ANOTHERS = PointId("p-000000000001"), PointId("p-000000000002"), PointId("p-000000000003")


class Node:
    """A monitor of a VM with one disk, and these bitmaps on it: name and dirty bytes."""

    def __init__(self, bitmaps: dict[str, int]) -> None:
        found = [
            {"name": name, "granularity": 65536, "count": count, "recording": True, "busy": False}
            for name, count in bitmaps.items()
        ]
        self._node = {"node-name": "n", "drv": "raw", "image": {"virtual-size": SIZE}, "dirty-bitmaps": found}

    def execute(self, name: str, arguments: Any = None, *, timeout: float | None = None) -> Any:
        assert name == "query-named-block-nodes"
        return [self._node]


@pytest.mark.parametrize(
    ("bitmaps", "known", "count"),
    [
        ({f"everywhen-{NEW}-vda": 65536, f"everywhen-{OLD}-vda": 655360}, {OLD: 1, NEW: 2}, 65536),
        ({f"everywhen-{NEW}-vda": 65536, f"everywhen-{OLD}-vda": 655360}, {OLD: 1}, 655360),
        ({f"everywhen-{NEW}-vda": 2 * SIZE}, {NEW: 2}, SIZE),
        ({f"everywhen-{NEW}-vdb": 65536, f"everywhen-{ANOTHERS}-vda": 65536}, {NEW: 2}, SIZE),
        ({}, {}, SIZE),
    ],
)
def test_what_is_expected(bitmaps: dict[str, int], known: dict[PointId, int], count: int) -> None:
    monitor: Monitor = Node(bitmaps)  # type: ignore[assignment]
    assert expected(monitor, DiskNode("vda", "n", SIZE, iothread=False), "vda", known) == count
