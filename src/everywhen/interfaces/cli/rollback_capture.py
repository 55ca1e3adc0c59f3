# SPDX-License-Identifier: AGPL-3.0-or-later
"""The capture of a VM on this host while the VM is rolled back: is `services.rollback.machine.Capture`."""

from __future__ import annotations

import time

from everywhen.formats.ids import PointId, is_point_id
from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.control_socket import NoAnswer, NobodyThere, ask
from everywhen.services.failures import Busy
from everywhen.services.protect import capture_states

_PAUSE_S = 3600.0
"""One that is over before the disks are written does no harm: they are marked, and capture refuses them."""
_PATIENCE_S, _LOOK_S = 300.0, 0.2
"""What it captured last becomes a point first, which may take a while."""


class CaptureHere:
    """By its control socket, where one answers."""

    def __init__(self, context: Context, vm: str) -> None:
        self._context = context
        self._vm = vm

    def stand_back(self) -> PointId | None:
        until = time.monotonic() + _PATIENCE_S
        why = "it does not say that the VM is off"
        while time.monotonic() < until:
            try:
                state = self._ask({"wish": "status"})
                if state.get("state") == capture_states.OFF:
                    why = str(self._ask({"wish": "pause", "seconds": _PAUSE_S}).get("error", ""))
                    if not why:
                        point = str(state.get("point") if state.get("in_sync") else "")
                        return PointId(point) if is_point_id(point) else None
                elif state.get("state") in (capture_states.PAUSED, capture_states.DETACHED):
                    self._ask({"wish": "resume"})  # a pause of somebody's, or of a run that was killed: it knows nothing then
            except NoAnswer:
                why = "it does not answer"
            except NobodyThere:
                return None
            time.sleep(_LOOK_S)
        raise Busy(
            f"The capture of {self._vm} does not stand back: {why}.",
            on=self._vm,
            safe="Nothing of the VM's disks was changed.",
            do=[f"everywhen status {self._vm}", "Then the same command again."],
        )

    def go_on(self, newest: PointId | None) -> None:
        try:
            self._ask({"wish": "resume", "in_sync": newest})
        except NobodyThere as error:
            if isinstance(error, NoAnswer):
                self._context.output.warn(f"{self._vm}: its capture does not answer; everywhen resume {self._vm} has it go on")

    def _ask(self, request: dict[str, object]) -> dict[str, object]:
        return ask(self._context.state(self._vm), request)
