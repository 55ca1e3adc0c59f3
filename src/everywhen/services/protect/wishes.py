# SPDX-License-Identifier: AGPL-3.0-or-later
"""What somebody wants of a capture that runs: from its terminal, or from a command elsewhere on the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Protocol, TypeAlias

from everywhen.formats.fields import Json
from everywhen.formats.point import RecoveryPoint

Reply = Callable[[Json], None]
"""Told once what became of a wish."""


@dataclass(frozen=True, slots=True)
class Ship:
    """Let every moment up to now be in the repository."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class Mark:
    """Make a recovery point of now, or of exactly the instant `at_ns`, with a name. The reply: its `point`, `time_ns`, `asked`,
    `reached`, `why`. `asked`: when it was wished, in seconds of the clock that never runs backwards."""

    text: str
    reply: Reply
    at_ns: int | None = None
    asked: float = inf


@dataclass(frozen=True, slots=True)
class Pause:
    """Take the taps off for so many seconds; the bitmaps remember what changes. Replied to when they are off. `asked`: as a
    mark's."""

    seconds: float
    reply: Reply
    asked: float = inf


@dataclass(frozen=True, slots=True)
class Resume:
    """End a pause, or the wait for another try. The reply's `resumed`: whether there was one. `newest`: the point that the
    images of a VM that is off were made to show meanwhile, or ''."""

    reply: Reply
    newest: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """End the capture, and leave nothing of it with the VM: what changes from then on nobody remembers."""

    reply: Reply


Wish: TypeAlias = Ship | Mark | Pause | Resume | End

LONGEST_PAUSE_S = 7 * 86400.0
ANSWER_S = 120.0
"""Nobody waits longer. A point that is being made comes first, and may take a while."""
GRANTED_S = 60.0
"""So long a wish may wait for its turn: the rest is for fulfilling it."""


class Wishes(Protocol):
    """Where wishes come from. Used by one thread."""

    @property
    def ending(self) -> bool:
        """Whether somebody wants the end."""

    @property
    def end_wish(self) -> End | None:
        """The wish, where it was not only for the end of this run."""

    def wait(self, seconds: float) -> Wish | None:
        """The next wish, as soon as there is one; None after so many seconds, or at once when the end is wanted."""


def marked(wish: Mark, point: RecoveryPoint) -> None:
    """Answer a wish that was fulfilled by this point."""
    wish.reply({name: getattr(point, name) for name in ("point", "time_ns", "asked", "reached", "why")})


def refuse(wish: Wish, why: str) -> None:
    """Answer a wish that nothing can be done about, because capture does not stand."""
    match wish:
        case Ship():
            wish.reply({})  # there is nothing that is not in the repository, or in the way there
        case Resume():
            wish.reply({"resumed": False})
        case _:
            wish.reply({"error": why})
