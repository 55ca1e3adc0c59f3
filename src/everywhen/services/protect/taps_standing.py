# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether the taps of a capture still hear of every write: each goes on, its disk is the VM's, and the guest is there; and
that they are taken off."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from everywhen.capture import leftovers
from everywhen.capture.hypervisor import Hypervisor
from everywhen.capture.nodes import detached
from everywhen.capture.qmp import CommandFailed, Monitor, MonitorError
from everywhen.capture.tap import Tap
from everywhen.services.protect.capture_order import CaptureLost, DisksChanged


def demand_taps(hypervisor: Hypervisor, monitor: Monitor, taps: Sequence[Tap]) -> None:
    """Raises CaptureLost when a tap has ended, a disk was taken from the VM, or its guest was migrated; MonitorError."""
    for tap in taps:
        if (why := tap.ended(0)) is not None:
            raise CaptureLost(f"{tap.disk.device}: {why}")
        # Its tap goes on; what is attached in its place is another device, with no tap.
        if detached(monitor, tap.disk):
            raise DisksChanged(f"{tap.disk.device} was detached")
    if (why := hypervisor.why_away(monitor)) is not None:
        raise CaptureLost(why)


def take_off(monitor: Monitor, sink: Path, *, answered: bool) -> Exception | None:
    """Leave nothing but bitmaps of the capture whose sink listens there, and still answers (`answered`); why it failed."""
    try:
        if not leftovers.is_anothers(monitor, sink):
            leftovers.clear(monitor, answered=answered)
    except (CommandFailed, MonitorError) as error:
        return error
    return None
