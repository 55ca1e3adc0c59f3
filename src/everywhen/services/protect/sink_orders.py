# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a capture's sink is told."""

from __future__ import annotations

from everywhen.capture.nodes import DiskNode
from everywhen.capture.shared_clock import join
from everywhen.capture.sink_process import SinkOrder
from everywhen.repository.keys.segment_keys import JournalRecipient
from everywhen.repository.repository import Surroundings
from everywhen.services.protect.capture_order import CaptureOrder


def joined_clock(around: Surroundings, order: CaptureOrder) -> str:
    """The clock of this host that stamps the writes of all VMs in groups. Raises OSError."""
    return join(order.folder.parent, str(order.spool), around.clock(), around.randomness)


def sink_order(
    recipient: JournalRecipient, order: CaptureOrder, nodes: list[DiskNode], stream: tuple[str, int], clock: str
) -> SinkOrder:
    """Of these disks; its spool is sealed for that recipient. `stream`: its name, and the epoch."""
    return SinkOrder(
        sizes=[node.size for node in nodes],
        folder=str(order.spool),
        limit=order.spool_limit,
        stream=stream[0],
        epoch=stream[1],
        repository=recipient.repository.hex(),
        generation=recipient.generation,
        public=recipient.public.hex(),
        clock=clock,
    )
