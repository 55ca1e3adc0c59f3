# SPDX-License-Identifier: AGPL-3.0-or-later
"""Domains that are on their way between two hosts, by what libvirt says of them: no image is read, and no write claimed, of a
guest that runs on the other one. What libvirt says: its libvirt-domain.h, and 9.0 in `test_libvirt_migration.py`."""

from __future__ import annotations

from typing import Any

import pytest

libvirt = pytest.importorskip("libvirt", reason="libvirt's Python library is not installed")
import libvirt_qemu

from everywhen.capture import libvirt_vm
from everywhen.capture.libvirt_host import Domain, LibvirtHost, NotRunning
from everywhen.capture.libvirt_monitor import LibvirtMonitor
from everywhen.capture.libvirt_vm import LibvirtVm
from everywhen.capture.nodes import DiskNode
from everywhen.capture.qmp import MOST_EVENTS, MonitorError
from everywhen.capture.tap import Tap

XML = """<domain type='qemu'><name>web</name><uuid>8b0f4f54-0f1c-4d9e-9b1b-5c5d1f0f7a11</uuid><os><type>hvm</type></os><devices>
    <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/images/web.raw'/>
    <target dev='vda' bus='virtio'/></disk></devices></domain>"""
RUNS = libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_BOOTED
OFF = libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN
LEFT = libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED
ARRIVING = libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION
FAILED = libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_FAILED
POSTCOPY = libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY
POSTCOPY_FAILED = libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED


class Told:
    """libvirt's connection and its one domain: in this state, for this reason; and whoever listens to what happens to it."""

    def __init__(self, state: tuple[int, int], job: int | None = libvirt.VIR_DOMAIN_JOB_NONE) -> None:
        self._state = state
        self._job = job
        self.lived: Any = None

    def name(self) -> str:
        return "web"

    def UUIDString(self) -> str:  # noqa: N802 - libvirt's name
        return "8b0f4f54-0f1c-4d9e-9b1b-5c5d1f0f7a11"

    def isActive(self) -> int:  # noqa: N802 - libvirt's name
        return int(self._state[0] != libvirt.VIR_DOMAIN_SHUTOFF)

    def state(self) -> list[int]:
        return list(self._state)

    def jobInfo(self) -> list[int]:  # noqa: N802 - libvirt's name
        if self._job is None:
            refused = libvirt.libvirtError("migration statistics are available only on the source host")
            refused.err = (libvirt.VIR_ERR_OPERATION_UNSUPPORTED,)
            raise refused
        return [self._job]

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802 - libvirt's name
        return XML

    def domainEventRegisterAny(self, _domain: object, _kind: int, told: object, _opaque: object) -> int:  # noqa: N802
        self.lived = told
        return 1


class Host(LibvirtHost):
    """What a libvirt is reached by that says this."""

    def __init__(self, told: Told) -> None:
        self.connection = told
        self._gone = []

    def domain(self, wanted: str) -> Domain:
        assert wanted == "web"
        return Domain(self, self.connection)

    def close(self) -> None:
        """There is nothing."""


def vm(monkeypatch: pytest.MonkeyPatch, told: Told) -> LibvirtVm:
    monkeypatch.setattr(libvirt_vm, "LibvirtHost", lambda _uri: Host(told))
    return LibvirtVm("test:///", "web")


def connected(monkeypatch: pytest.MonkeyPatch, told: Told) -> LibvirtMonitor:
    monkeypatch.setattr(libvirt_qemu, "qemuMonitorEventRegister", lambda *_: 2)
    return LibvirtMonitor(Host(told), "web", 5)


@pytest.mark.parametrize(
    ("told", "off", "read"),
    [
        (Told(RUNS), False, True),
        (Told(OFF), True, True),
        (Told(LEFT), True, False),
        (Told(ARRIVING, None), True, False),
        (Told(FAILED), True, False),  # as where its QEMU does not even begin to wait for it
        (Told(ARRIVING), False, True),  # it was restored from a file, and is to stand still
        (Told(POSTCOPY, libvirt.VIR_DOMAIN_JOB_UNBOUNDED), True, False),
        (Told(POSTCOPY_FAILED), True, False),
    ],
)
def test_images_are_read_only_of_a_domain_that_runs_nowhere(
    monkeypatch: pytest.MonkeyPatch, told: Told, *, off: bool, read: bool
) -> None:
    asked = vm(monkeypatch, told)
    assert asked.is_off() == off
    assert (asked.images()["vda"].why_not == "") == read
    if off:
        with pytest.raises(NotRunning):
            connected(monkeypatch, told)


def test_from_the_switch_to_postcopy_on_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(RUNS)
    monitor = connected(monkeypatch, told)
    for suspended in (libvirt.VIR_DOMAIN_EVENT_SUSPENDED_PAUSED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED):
        told.lived(told, told, libvirt.VIR_DOMAIN_EVENT_SUSPENDED, suspended, None)
        assert monitor.next_event(0) is None
    told.lived(told, told, libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY, None)
    with pytest.raises(MonitorError, match="has moved to another host"):
        monitor.next_event(0)


def test_a_guest_cannot_hide_the_end_of_its_tap(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = connected(monkeypatch, Told(RUNS))
    monitor._hear(None, None, "BLOCK_JOB_COMPLETED", 0, 0, '{"device": "everywhen-tap-0", "error": "it is gone"}', None)
    for _ in range(MOST_EVENTS):
        monitor._hear(None, None, "BLOCK_IO_ERROR", 0, 0, '{"device": "vda"}', None)
    tap = Tap(monitor, DiskNode("vda", "node0", 1 << 20, iothread=False), 0)
    assert tap.ended(0) == "it is gone"
    assert monitor.next_event(0) is None
