# SPDX-License-Identifier: AGPL-3.0-or-later
"""Nothing of ours is left with a VM: what a capture that has ended, or was killed, leaves there, and its bitmaps too.

Without the bitmaps nobody knows what changes from then on: a capture that begins later reads all disks and compares.
"""

from __future__ import annotations

from pathlib import Path

from everywhen.capture import leftovers
from everywhen.capture.hypervisor import Hypervisor
from everywhen.services.failures import Busy
from everywhen.services.protect.taps_standing import captured_as


def withdraw(hypervisor: Hypervisor, sink: Path | None = None) -> int:
    """How many bitmaps were taken off. `sink`: the socket of the run that ends, None where no capture runs: where taps lead to
    another one, a later run captures the VM, and nothing is taken from that.

    Raises Busy where none is to run, and one does; what `capture_order.ENDS` names.
    """
    with hypervisor.monitor() as monitor:
        if sink is None and (name := captured_as(monitor)) is not None:
            what = f"A capture that runs on this host has this VM, as {name}."
            raise Busy(what, on=hypervisor.place, safe="Nothing was done.", do=[f"everywhen unprotect {name}"])
        if sink is not None and leftovers.is_anothers(monitor, sink):
            return 0
        leftovers.clear(monitor, answered=False)
        return leftovers.clear_bitmaps(monitor)
