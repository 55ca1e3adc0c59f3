# SPDX-License-Identifier: AGPL-3.0-or-later
"""A domain of this host's libvirt, as capture has any VM. Each question has a connection of its own: none outlives libvirtd."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from everywhen.capture import answers
from everywhen.capture.domain_disks import find_domain_disks, stored_disks, survey_by_target
from everywhen.capture.domain_files import definition_files
from everywhen.capture.hypervisor import Identity
from everywhen.capture.libvirt_host import LibvirtHost
from everywhen.capture.libvirt_monitor import LibvirtMonitor
from everywhen.capture.nodes import DiskNode, device_path
from everywhen.capture.qmp import CommandFailed, Monitor
from everywhen.capture.socket_access import ProcessUser, let_in
from everywhen.capture.stored_disk import StoredDisk
from everywhen.capture.survey import Survey, survey


@dataclass(frozen=True, slots=True)
class LibvirtVm:
    """The domain of that name or UUID. All methods raise NoDomain and MonitorError; what else, `Hypervisor` says."""

    uri: str
    domain: str

    @property
    def place(self) -> str:
        return f"{self.domain} at {self.uri}"

    def identity(self) -> Identity:
        with LibvirtHost(self.uri) as host:
            domain = host.domain(self.domain)
            return Identity(domain.name, domain.uuid)

    def is_off(self) -> bool:
        with LibvirtHost(self.uri) as host:
            domain = host.domain(self.domain)
            return not domain.runs or domain.is_arriving or domain.is_elsewhere

    def images(self) -> dict[str, StoredDisk]:
        with LibvirtHost(self.uri) as host:
            domain = host.domain(self.domain)
            disks = stored_disks(domain.parsed(running=False))
            if domain.is_elsewhere or domain.is_arriving:
                why = "the VM runs on another host"
            elif domain.has_failed:
                why = "the VM could not be started here, or not arrive, and may run on another host"
            else:
                return disks
            return {name: disk._replace(why_not=why) for name, disk in disks.items()}

    def monitor(self) -> Monitor:
        return LibvirtMonitor.connect(self.uri, self.domain)

    def clear_outdated(self, monitor: Monitor, disks: list[DiskNode]) -> None:
        """libvirt lets no guest run on in a QEMU that it has left."""

    def why_away(self, monitor: Monitor) -> str | None:  # noqa: ARG002 - libvirt ends such a QEMU, and its monitor says why
        return None

    def disks(self, monitor: Monitor) -> list[DiskNode]:
        with LibvirtHost(self.uri) as host:
            return find_domain_disks(monitor, host.domain(self.domain).parsed(running=True))

    def survey(self, monitor: Monitor) -> Survey:
        with LibvirtHost(self.uri) as host:
            return survey_by_target(survey(monitor), host.domain(self.domain).parsed(running=True))

    def definition(self) -> dict[str, bytes]:
        with LibvirtHost(self.uri) as host:
            return definition_files(host.domain(self.domain))

    def admit(self, path: Path, monitor: Monitor) -> None:  # noqa: ARG002 - libvirt says whose process it is
        with LibvirtHost(self.uri) as host:
            user = ProcessUser.of_label(host.domain(self.domain).parsed(running=True).owner)
        let_in(path, user)

    def forget(self, monitor: Monitor, disks: list[DiskNode]) -> None:
        """libvirt tries once to close them, and takes no notice when it cannot: they would stay open, and locked."""
        there = {device_path(drive) for drive in answers.drives(monitor)}
        graph = answers.graph(monitor)
        for disk in disks:
            if disk.path not in there:
                for node in graph.below(disk.node):
                    with suppress(CommandFailed):  # another disk has it, too
                        monitor.execute("blockdev-del", {"node-name": node})
