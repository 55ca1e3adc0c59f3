# SPDX-License-Identifier: AGPL-3.0-or-later
"""What somebody wants of a capture that runs: from its terminal, or from a command elsewhere on the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from everywhen.formats.fields import Json

Reply = Callable[[Json], None]
"""Told once what became of a wish."""


@dataclass(frozen=True, slots=True)
class Ship:
    """Let every moment up to now be in the repository."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class Mark:
    """Make a recovery point of now, with a name."""

    text: str
    reply: Reply


@dataclass(frozen=True, slots=True)
class Pause:
    """Take the taps off for so many seconds; the bitmaps remember what changes."""

    seconds: float
    reply: Reply


@dataclass(frozen=True, slots=True)
class Resume:
    """End a pause."""

    reply: Reply


Wish: TypeAlias = Ship | Mark | Pause | Resume


class Wishes(Protocol):
    """Where wishes come from. Used by one thread."""

    @property
    def ending(self) -> bool:
        """Whether somebody wants the end."""

    def wait(self, seconds: float) -> Wish | None:
        """The next wish, as soon as there is one; None after so many seconds, or at once when the end is wanted."""
