# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether the agent in a guest answers, asked again and again by a thread of its own: most guests have none, and it waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

from everywhen.capture.agent import Agent, AgentError

_ANSWER_S = 2.0
_PAUSE_S = 0.5


@contextmanager
def agent_watched(asked: Agent, seen: Callable[[], object]) -> Iterator[None]:
    """While the body runs: `seen` is called once, by another thread, when the agent has answered."""
    over = Event()

    def watch() -> None:
        with asked as agent:
            while not over.is_set():
                try:
                    agent.execute("guest-ping", timeout=_ANSWER_S)
                except AgentError:
                    over.wait(_PAUSE_S)
                else:
                    seen()
                    return

    thread = Thread(target=watch, name="agent-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
