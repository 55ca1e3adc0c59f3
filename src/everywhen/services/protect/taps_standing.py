# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether the taps of a capture still hear of every write: each goes on, its disk is the VM's, and the guest is there; whose
others are; and that they are taken off."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from everywhen.capture import leftovers
from everywhen.capture.hypervisor import Hypervisor
from everywhen.capture.nodes import detached
from everywhen.capture.qmp import CommandFailed, Monitor, MonitorError
from everywhen.capture.tap import Tap
from everywhen.nbd.connection import NbdConnection, NbdError
from everywhen.services.protect.capture_order import CaptureLost, DisksChanged
from everywhen.services.protect.choosing import CannotCapture

_ANSWER_S = 2.0


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


def captured_as(monitor: Monitor) -> str | None:
    """The name by which a capture that runs, its sink answers, has taps on this VM. Raises MonitorError, CommandFailed."""
    for socket in leftovers.sinks(monitor):
        with suppress(NbdError):
            NbdConnection(str(socket), "probe", timeout=_ANSWER_S).close()
            return socket.parent.parent.name
    return None


def demand_one_name(monitor: Monitor, name: str) -> None:
    """Raises CannotCapture where the VM is captured by another name: who loses it stands aside for captures of its own name
    alone, so the two would take it from each other for ever."""
    other = captured_as(monitor)
    if other not in (None, name):
        raise CannotCapture(
            f"a capture that runs on this host has it already, as {other}",
            f"That one protects it: everywhen status {other}",
            f"Is {name} to be its name from now on? First: everywhen unprotect {other}",
            busy=True,
        )


def take_off(monitor: Monitor, sink: Path, *, answered: bool) -> Exception | None:
    """Leave nothing but bitmaps of the capture whose sink listens there, and still answers (`answered`); why it failed."""
    try:
        if not leftovers.is_anothers(monitor, sink):
            leftovers.clear(monitor, answered=answered)
    except (CommandFailed, MonitorError) as error:
        return error
    return None
