# SPDX-License-Identifier: AGPL-3.0-or-later
"""Nothing of ours is left with a VM: what a capture that has ended, or was killed, leaves there, and its bitmaps too.

Without the bitmaps nobody knows what changes from then on: a capture that begins later reads all disks and compares.
"""

from __future__ import annotations

from everywhen.capture import leftovers
from everywhen.capture.hypervisor import Hypervisor


def withdraw(hypervisor: Hypervisor) -> int:
    """How many bitmaps were taken off. Only where no capture runs. Raises what `capture_order.ENDS` names."""
    with hypervisor.monitor() as monitor:
        leftovers.clear(monitor)
        return leftovers.clear_bitmaps(monitor)
