# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether the guest of a domain that was started is up: by its serial console, its agent, or a TCP port that answers."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from queue import Empty, SimpleQueue
from threading import Event, Thread

from everywhen.capture.libvirt_agent import LibvirtAgent
from everywhen.capture.qmp import MonitorError
from everywhen.hypervisor.host import GuestConsole, VmHost
from everywhen.services.boot.agent_watch import agent_watched
from everywhen.services.boot.sight import Prompt

_LOOK_S = 1.0
_CONNECT_S = 2.0
PROMPT, AGENT = "login prompt", "guest agent"


def started_and_seen(
    host: VmHost,
    uuid: str,
    wait_s: float,
    monotonic: Callable[[], float],
    told: Callable[[str], object],
    signs: Collection[str] = (PROMPT, AGENT),
) -> str:
    """Start the domain, and wait until its guest is seen to be up: by what of `signs`; '' when it was not in time, or has ended
    before.

    `told`: why its console is not read. Raises MonitorError when it does not start.
    """
    seen: SimpleQueue[str] = SimpleQueue()
    host.start(uuid, paused=True)
    with ExitStack() as watched:
        if PROMPT in signs:
            try:
                console = host.console(uuid)
            except MonitorError as error:
                told(f"its console cannot be read ({error})" + ("; its agent is waited for" if AGENT in signs else ""))
            else:
                watched.callback(console.close)
                Thread(target=_read, args=(console, seen), name="console-watch", daemon=True).start()
        if AGENT in signs:
            watched.enter_context(agent_watched(LibvirtAgent(host.uri, uuid), lambda: seen.put(AGENT)))
        host.resume(uuid)
        return _first(seen, host, uuid, wait_s, monotonic)


def agent_seen(host: VmHost, uuid: str, wait_s: float, monotonic: Callable[[], float]) -> str:
    """The same for the agent of a domain that runs already. Raises MonitorError."""
    seen: SimpleQueue[str] = SimpleQueue()
    with agent_watched(LibvirtAgent(host.uri, uuid), lambda: seen.put(AGENT)):
        return _first(seen, host, uuid, wait_s, monotonic)


def port_seen(host: VmHost, uuid: str, address: tuple[str, int], wait_s: float, monotonic: Callable[[], float]) -> str:
    """Wait until somebody takes a connection there, while the domain runs; '' when nobody did in time. Raises MonitorError."""
    end = monotonic() + wait_s
    while (left := end - monotonic()) > 0 and host.runs(uuid):
        # Refused, no way to it, a name that is not known yet: all may be otherwise when it is up.
        with suppress(OSError), socket.create_connection(address, timeout=min(left, _CONNECT_S)):
            return f"{address[0]} port {address[1]} answers"
        Event().wait(min(left, _LOOK_S))
    return ""


def _first(seen: SimpleQueue[str], host: VmHost, uuid: str, wait_s: float, monotonic: Callable[[], float]) -> str:
    end = monotonic() + wait_s
    while (left := end - monotonic()) > 0:
        with suppress(Empty):
            return seen.get(timeout=min(left, _LOOK_S))
        if not host.runs(uuid):
            break
    return ""


def _read(console: GuestConsole, seen: SimpleQueue[str]) -> None:
    prompt = Prompt()
    while text := console.receive():
        if prompt.seen(text):
            seen.put(PROMPT)
            return
