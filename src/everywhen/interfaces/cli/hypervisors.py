# SPDX-License-Identifier: AGPL-3.0-or-later
"""The options by which a user says where a VM runs, and the one place that chooses how it is reached."""

from __future__ import annotations

from typing import Annotated

import typer

from everywhen.capture.hypervisor import Hypervisor, QmpSocket
from everywhen.interfaces.cli.libvirt_needed import needing_libvirt
from everywhen.services.failures import WrongUsage

Qmp = Annotated[str | None, typer.Option("--qmp", metavar="SOCKET", help="QEMU's monitor, a unix socket.")]
Libvirt = Annotated[str | None, typer.Option("--libvirt", metavar="URI", help="libvirt of this host, as qemu:///system.")]
Domain = Annotated[
    str | None, typer.Option("--domain", metavar="NAME", help="libvirt's name or UUID of the VM, where it is another.")
]


def hypervisor(vm: str, qmp: str | None, uri: str | None, domain: str | None) -> Hypervisor:
    """Where the VM runs, as it was said. Raises WrongUsage, Failed."""
    if (qmp is None) == (uri is None) or (domain is not None and uri is None):
        raise WrongUsage(
            f"Where does {vm} run?" if qmp is None else "A VM is reached by its monitor or through libvirt, not by both.",
            on=vm,
            do=["--libvirt URI [--domain NAME]: a domain of libvirt", "--qmp SOCKET: a monitor of QEMU's"],
        )
    if qmp is not None:
        return QmpSocket(qmp)
    # Only here: most hosts of repositories have no libvirt.
    with needing_libvirt(vm):
        from everywhen.capture.libvirt_vm import LibvirtVm
    return LibvirtVm(uri or "", domain or vm)
