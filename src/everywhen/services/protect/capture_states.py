# SPDX-License-Identifier: AGPL-3.0-or-later
"""Words that a capture uses of itself. Apart from it, because who only asks a capture need not load what captures."""

from __future__ import annotations

STARTING, COPYING, FOLLOWING, DETACHED, PAUSED, OFF = "starting", "copying", "following", "detached", "paused", "off"
DISPLACED = "displaced"
"""Another capture of the VM began later."""

NOT_RUNNING = "capture was not running"
"""Why nothing was captured before a run of ours."""


def work_of(vm: str) -> str:
    """What the sessions of a capture of that VM are called, in which it makes points."""
    return f"protect {vm}"
