# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a capture's sink is told."""

from __future__ import annotations

from everywhen.capture.nodes import DiskNode
from everywhen.capture.sink_process import SinkOrder
from everywhen.repository.keys.segment_keys import JournalRecipient
from everywhen.repository.repository import Repository
from everywhen.services.protect.capture_order import CaptureOrder


def sink_order(repository: Repository, order: CaptureOrder, nodes: list[DiskNode], stream: str, epoch: int) -> SinkOrder:
    """Of these disks; its spool is sealed for the repository."""
    recipient = JournalRecipient.of(repository.id, repository.unlocked.keyset)
    return SinkOrder(
        sizes=[node.size for node in nodes],
        folder=str(order.spool),
        limit=order.spool_limit,
        stream=stream,
        epoch=epoch,
        repository=recipient.repository.hex(),
        generation=recipient.generation,
        public=recipient.public.hex(),
    )
