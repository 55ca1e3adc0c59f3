# SPDX-License-Identifier: AGPL-3.0-or-later
"""The guest's agent asked to give back what its file systems do not use, while no tap is in the way (docs/trim.md)."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

from everywhen.capture.agent import Agent, AgentError, AgentRefused
from everywhen.formats.errors import Corrupt
from everywhen.formats.fields import mapping, objects, text, whole

_ANSWER_S = 5.0
_FORGETTING = 8 << 20
"""Bytes: at most a group of an ext4 with blocks of 1 KiB, or it is refused; and more than any disk's smallest discard."""
_MOST_PATHS = 1000


@dataclass(slots=True)
class Trimmed:
    """Bytes that file systems gave back or had given back before, by where they are mounted; and why others did not."""

    paths: dict[str, int] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


def trim(agent: Agent, seconds: float) -> Trimmed:
    """Trim all file systems, within so many seconds for each of two rounds. Raises AgentError."""
    system: object = None
    with suppress(AgentRefused):
        system = agent.execute("guest-get-osinfo", timeout=_ANSWER_S)
    if not isinstance(system, dict) or system.get("id") != "mswindows":
        # ext4 remembers what was trimmed while a tap dropped it, and would leave that out. It forgets that when it is asked
        # for smaller pieces than the last time: of 12 MB dropped a plain trim gave back 8, after this one all 12.
        agent.execute("guest-fstrim", {"minimum": _FORGETTING}, timeout=seconds)
    done = Trimmed()
    try:
        for one in objects(mapping({"": agent.execute("guest-fstrim", timeout=seconds)}, ""), "paths")[:_MOST_PATHS]:
            path = text(one, "path")
            if "error" in one:
                done.errors[path] = text(one, "error")
            else:
                done.paths[path] = whole(one, "trimmed", 0)
    except Corrupt as error:
        raise AgentError(f"guest-fstrim is answered otherwise than an agent does: {error}") from error
    return done
