# SPDX-License-Identifier: AGPL-3.0-or-later
"""The monitor of a domain's QEMU, through libvirt, which holds the only connection to it (libvirt: libvirt-qemu.h).

libvirt marks a domain as tainted (`custom-monitor`) from the first command until it is started anew. Nothing else changes for
it: libvirt neither sees nor minds our jobs. When libvirtd is restarted, the monitor is lost and the domain runs on.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from types import TracebackType
from typing import Any, Self

import libvirt
import libvirt_qemu

from everywhen.capture.libvirt_host import LibvirtHost, NotRunning, within
from everywhen.capture.qmp import CommandFailed, Event, Heard, MonitorError
from everywhen.formats.errors import Corrupt
from everywhen.formats.fields import Json, mapping, parse_json, text

_CLOSE_S = 5.0
_STOPPED = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN: "the VM was shut down",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: "the VM was ended from outside (virsh destroy)",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: "the VM has crashed",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED: "the VM has moved to another host",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SAVED: "the VM was saved to a file and ended",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FROM_SNAPSHOT: "the VM was set back to a snapshot",
}


class LibvirtMonitor:
    """The monitor of a running domain, with a connection to libvirt of its own: libvirt allows one of a domain on each.

    Events may come later than the reply to a command that was run after them.
    """

    def __init__(self, host: LibvirtHost, name: str, timeout: float) -> None:
        """Take over a connection, which ends with the monitor. Raises NoDomain, NotRunning, MonitorError."""
        self.timeout = timeout
        self._host = host
        self._domain = host.domain(name)
        self._arrived = threading.Condition()
        self._events = Heard()
        self._gone: str | None = None
        if not self._domain.runs:
            raise NotRunning(f'the domain "{name}" is not running')
        if self._domain.is_arriving:
            raise NotRunning(f'the domain "{name}" is about to arrive by migration')
        if self._domain.is_elsewhere:
            raise NotRunning(f'the domain "{name}" has moved to another host')
        host.when_gone(self._lose)
        connection, domain = host.connection, self._domain.domain
        kind = libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE
        self._life = within(timeout, lambda: connection.domainEventRegisterAny(domain, kind, self._lived, None))
        self._heard = within(timeout, lambda: libvirt_qemu.qemuMonitorEventRegister(connection, domain, None, self._hear, None))

    @classmethod
    def connect(cls, uri: str, name: str, timeout: float = 10.0) -> LibvirtMonitor:
        """The monitor of the domain of that name or UUID. `timeout`: seconds that a command may take.

        Raises NoDomain, NotRunning, MonitorError.
        """
        host = LibvirtHost(uri)
        try:
            return cls(host, name, timeout)
        except MonitorError:
            host.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        connection = self._host.connection
        with suppress(MonitorError):  # libvirt is gone, and so is what was registered
            within(_CLOSE_S, lambda: libvirt_qemu.qemuMonitorEventDeregister(connection, self._heard))
            within(_CLOSE_S, lambda: connection.domainEventDeregisterAny(self._life))
        self._host.close()

    def execute(self, name: str, arguments: Json | None = None, *, timeout: float | None = None) -> Any:  # noqa: ANN401 - JSON
        """Run a command and wait for what it returns. Raises CommandFailed, MonitorError."""
        message: Json = {"execute": name}
        if arguments:
            message["arguments"] = arguments
        command, limit = json.dumps(message), self.timeout if timeout is None else timeout
        answer = str(within(limit, lambda: libvirt_qemu.qemuMonitorCommand(self._domain.domain, command, 0)))
        try:
            reply = parse_json("the monitor's answer", answer.encode())
            if "return" in reply:
                return reply["return"]
            error = mapping(reply, "error")
            raise CommandFailed(name, text(error, "class", ""), text(error, "desc", ""))
        except Corrupt as error:
            raise MonitorError(f"no QMP monitor: {error}") from error

    def next_event(self, timeout: float, wanted: Callable[[Event], bool] = lambda _: True) -> Event | None:
        """The oldest event that is wanted, taken out; None when none comes in time. Raises MonitorError."""
        end = monotonic() + timeout
        with self._arrived:
            while True:
                if (event := self._events.take(wanted)) is not None:
                    return event
                if self._gone is not None:
                    raise MonitorError(self._gone)
                left = end - monotonic()
                if left <= 0:
                    return None
                self._arrived.wait(left)

    def _hear(self, _connection: object, _domain: object, *parts: Any) -> None:  # noqa: ANN401 - what libvirt passes
        """In the thread of events: something happened in QEMU."""
        name, _, _, details, _ = parts
        try:
            data = parse_json("an event", details.encode()) if details else {}
        except Corrupt:
            self._lose(f"no QMP monitor: the event {name} cannot be read")
            return
        with self._arrived:
            self._events.add(Event(str(name), data))
            self._arrived.notify()

    def _lived(self, _connection: object, _domain: object, event: int, detail: int, _nothing: object) -> None:
        """In the thread of events: the domain was started, paused, ended, …"""
        if event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
            self._lose(_STOPPED.get(detail, "the VM has ended"))
        elif event == libvirt.VIR_DOMAIN_EVENT_SUSPENDED and detail == libvirt.VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY:
            # It runs there already, and writes; the QEMU here goes on, with our taps, until all of its memory was fetched.
            self._lose(_STOPPED[libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED])

    def _lose(self, why: str) -> None:
        with self._arrived:
            self._gone = self._gone or why
            self._arrived.notify()
