# SPDX-License-Identifier: AGPL-3.0-or-later
"""QEMU's guest agent, however it is reached. The guest is not trusted: no answer is waited for without limit."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol, Self

from everywhen.formats.fields import Json


class AgentError(Exception):
    """The guest's agent cannot be used: it does not answer, or not as an agent does, or it refused a command."""


class AgentGone(AgentError):
    """There is no such agent, because its VM does not run."""


class AgentRefused(AgentError):
    """The agent answered that it cannot or will not do this."""


class Agent(Protocol):
    """A guest's agent, for one thread."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def execute(self, name: str, arguments: Json | None = None, *, timeout: float, blind: bool = False) -> Any:  # noqa: ANN401 - JSON
        """Run a command; what it returns, within so many seconds. Raises AgentError.

        `blind`: send it also to an agent that does not answer just now: it does it when it comes to itself.
        """
