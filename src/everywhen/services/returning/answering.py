# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether the guest of a domain that was started is up: by its serial console, or by its agent, whichever comes first."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread

from everywhen.capture.libvirt_agent import LibvirtAgent
from everywhen.capture.qmp import MonitorError
from everywhen.hypervisor.host import GuestConsole, VmHost
from everywhen.services.boot.agent_watch import agent_watched
from everywhen.services.boot.sight import Prompt

_LOOK_S = 1.0


def started_and_seen(
    host: VmHost, uuid: str, wait_s: float, monotonic: Callable[[], float], told: Callable[[str], object]
) -> str:
    """Start the domain, and wait until its guest is seen to be up: by what; '' when it was not in time, or has ended before.

    `told`: why its console is not read. Raises MonitorError when it does not start.
    """
    signs: SimpleQueue[str] = SimpleQueue()
    host.start(uuid, paused=True)
    console: GuestConsole | None = None
    try:
        console = host.console(uuid)
    except MonitorError as error:
        told(f"its console cannot be read ({error}); its agent is waited for")
    try:
        if console is not None:
            Thread(target=_read, args=(console, signs), name="console-watch", daemon=True).start()
        with agent_watched(LibvirtAgent(host.uri, uuid), lambda: signs.put("guest agent")):
            host.resume(uuid)
            end = monotonic() + wait_s
            while (left := end - monotonic()) > 0:
                with suppress(Empty):
                    return signs.get(timeout=min(left, _LOOK_S))
                if not host.runs(uuid):
                    break
            return ""
    finally:
        if console is not None:
            console.close()


def _read(console: GuestConsole, signs: SimpleQueue[str]) -> None:
    prompt = Prompt()
    while text := console.receive():
        if prompt.seen(text):
            signs.put("login prompt")
            return
