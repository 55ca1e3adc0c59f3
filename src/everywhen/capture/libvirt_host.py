# SPDX-License-Identifier: AGPL-3.0-or-later
"""A host's libvirt, over its own library: its domains, found by name or UUID (libvirt: html/libvirt-libvirt-domain.html).

libvirt's calls have no time limit, so each runs in a thread of its own, which is waited for that long and no longer. What comes
from libvirt by itself (events, the end of a connection) comes in one thread for the whole process, as libvirt wants it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from difflib import get_close_matches
from functools import cache
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar, cast
from urllib.parse import urlsplit

import libvirt

from everywhen.capture.domain_xml import DomainXml, parse_domain
from everywhen.capture.qmp import MonitorBusy, MonitorError, VmOff, VmUnknown
from everywhen.formats.errors import Corrupt

T = TypeVar("T")
ANSWER_S = 30.0
"""libvirt itself waits this long for another's command on the same domain, then says so."""
_KEEPALIVE_S, _KEEPALIVES = 5, 3
"""A libvirtd that does not answer for 20 s is gone, although its socket is open."""


_ELSEWHERE = (
    (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED),
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY),
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED),
)
"""States and reasons of a domain whose guest is on another host."""


class NoDomain(VmUnknown):
    """The host has no such domain. `near`: names that look like it."""

    def __init__(self, wanted: str, near: list[str]) -> None:
        super().__init__(f'there is no domain "{wanted}"' + (f"; similar: {', '.join(near)}" if near else ""))
        self.near = near


class NotRunning(VmOff):
    """The domain is known, and shut off."""


class LibvirtLate(MonitorBusy):
    """libvirt does not answer, as long as it migrates, saves or dumps the domain; or it is blocked, or the domain is."""


@cache
def _begin_events() -> None:
    """libvirt's loop for events, once in a process and before the first connection; it ends with the process."""

    def turn() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    libvirt.registerErrorHandler(lambda _context, _error: None, None)  # it would write to standard error
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=turn, name="libvirt events", daemon=True).start()


def within(seconds: float, call: Callable[[], T]) -> T:
    """What a call of libvirt gives. Raises LibvirtLate, and MonitorError for libvirt's own errors."""
    outcome: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            outcome.put((call(), None))
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits
            outcome.put((None, error))

    threading.Thread(target=run, name="libvirt call", daemon=True).start()
    try:
        value, error = outcome.get(timeout=seconds)
    except Empty:
        raise LibvirtLate(f"libvirt does not answer within {seconds:g} s") from None
    if isinstance(error, libvirt.libvirtError):
        raise MonitorError(f"libvirt: {error}") from error
    if error is not None:
        raise error
    return cast(T, value)


class LibvirtHost:
    """A connection to the libvirt of this host. What is opened with it ends with it."""

    def __init__(self, uri: str) -> None:
        """Raises MonitorError."""
        if urlsplit(uri).hostname:
            raise MonitorError(f"{uri} is on another host: capture runs where the VM does, with sockets and files of that host")
        self._uri = uri
        self._gone: list[Callable[[str], None]] = []
        _begin_events()
        try:
            self.connection: Any = within(ANSWER_S, self._open)
        except MonitorError as error:
            raise MonitorError(f"{uri}: {error}") from error

    def _open(self) -> object:
        connection = libvirt.open(self._uri)
        connection.setKeepAlive(_KEEPALIVE_S, _KEEPALIVES)
        connection.registerCloseCallback(self._closed, None)
        return connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        with suppress(libvirt.libvirtError):  # it is closed already
            self.connection.unregisterCloseCallback()
        with suppress(MonitorError):
            within(_KEEPALIVE_S, self.connection.close)

    def domain(self, wanted: str) -> Domain:
        """The domain of that name or UUID. Raises NoDomain, MonitorError."""
        domains = {str(domain.name()): domain for domain in within(ANSWER_S, self.connection.listAllDomains)}
        by_uuid = {str(domain.UUIDString()): domain for domain in domains.values()}
        found = domains.get(wanted) or by_uuid.get(wanted.lower())
        if found is None:
            raise NoDomain(wanted, get_close_matches(wanted, domains, n=3))
        return Domain(self, found)

    def when_gone(self, told: Callable[[str], None]) -> None:
        """Have `told` called, from another thread, with the reason, when the connection ends by itself."""
        self._gone.append(told)

    def _closed(self, _connection: object, _reason: int, _nothing: object) -> None:
        for told in self._gone:
            told(f"{self._uri}: libvirt hung up")


class Domain:
    """A domain of a host."""

    def __init__(self, host: LibvirtHost, domain: Any) -> None:  # noqa: ANN401 - libvirt's objects have no types
        self.host = host
        self.domain = domain
        self.name = str(domain.name())
        self.uuid = str(domain.UUIDString())

    @property
    def runs(self) -> bool:
        """Whether there is a QEMU; it may be paused. Raises MonitorError."""
        return bool(within(ANSWER_S, self.domain.isActive))

    @property
    def is_elsewhere(self) -> bool:
        """Whether its guest was migrated to another host; after a switch to post-copy there is still a QEMU here. Raises
        MonitorError."""
        return tuple(within(ANSWER_S, self.domain.state)) in _ELSEWHERE

    @property
    def is_arriving(self) -> bool:
        """Whether there is a QEMU to which it is being migrated. Raises MonitorError."""
        state, reason = within(ANSWER_S, self.domain.state)
        if state != libvirt.VIR_DOMAIN_PAUSED or reason != libvirt.VIR_DOMAIN_PAUSED_MIGRATION:
            return False
        # One that was restored from a file, and is to stand still, has the same reason for good; but no job any more.
        try:
            return bool(within(ANSWER_S, self.domain.jobInfo)[0] != libvirt.VIR_DOMAIN_JOB_NONE)
        except MonitorError as error:
            # libvirt 9.0 has one, of which it tells where the guest comes from alone.
            why = error.__cause__
            if isinstance(why, libvirt.libvirtError) and why.get_error_code() == libvirt.VIR_ERR_OPERATION_UNSUPPORTED:
                return True
            raise

    @property
    def has_failed(self) -> bool:
        """Whether it is off because it could not be started here, be it to arrive: then it runs on on another host. Raises
        MonitorError."""
        return tuple(within(ANSWER_S, self.domain.state)) == (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_FAILED)

    def xml(self, *, running: bool) -> str:
        """Its definition, with all secrets: as it runs now, or as it will be started next. Raises NotRunning, MonitorError."""
        if running and not self.runs:
            raise NotRunning(f'the domain "{self.name}" is not running')
        flags = libvirt.VIR_DOMAIN_XML_SECURE | (0 if running else libvirt.VIR_DOMAIN_XML_INACTIVE)
        return str(within(ANSWER_S, lambda: self.domain.XMLDesc(flags)))

    def parsed(self, *, running: bool) -> DomainXml:
        """What the definition says. Raises NotRunning, MonitorError."""
        try:
            return parse_domain(self.xml(running=running))
        except Corrupt as error:
            raise MonitorError(f"{self.name}: {error}") from error
