# SPDX-License-Identifier: AGPL-3.0-or-later
"""A real guest that libvirt runs, frozen and trimmed by its agent, which only libvirt can reach."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("libvirt", reason="libvirt's Python library is not installed")

from everywhen.capture.agent import AgentError, AgentGone, AgentRefused
from everywhen.capture.agent_address import AgentAddress
from tests.guest import KERNEL, SIZES, needs_kernel
from tests.guest_agent import needs_agent, with_agent
from tests.hypervisor import eventually
from tests.libvirt_capture import LibvirtCapture
from tests.libvirtd import Guest, Libvirtd
from tests.long_forms import in_soak

pytestmark = [pytest.mark.xdist_group("libvirt"), needs_kernel, needs_agent]

_BOOTED = "<kernel>{folder}/vmlinuz</kernel><initrd>{folder}/initramfs</initrd><cmdline>console=ttyS0 quiet panic=0</cmdline>"
_DEVICES = """<controller type='virtio-serial'/>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <serial type='null'/><serial type='unix'><source mode='bind' path='{folder}/port'/></serial>"""


@pytest.fixture(scope="module")
def guest(libvirtd: Libvirtd) -> Iterator[Guest]:
    devices = _DEVICES.format(folder=libvirtd.folder / "agent")
    with Guest(libvirtd, "agent", [(size, "raw") for size in SIZES], os_more=_BOOTED, more=devices) as made:
        for image in made.images:
            subprocess.run(["mke2fs", "-q", "-t", "ext4", image], check=True)
        with_agent(hook=False)(made.folder)
        (made.folder / "vmlinuz").write_bytes((KERNEL / "vmlinuz").read_bytes())
        made.raw.undefine()
        libvirtd.connection.defineXML(made.xml.replace("<memory unit='MiB'>32<", "<memory unit='MiB'>128<"))
        made.raw.create()
        with socket.socket(socket.AF_UNIX) as port:
            port.settimeout(60)
            port.connect(str(made.folder / "port"))
            with port.makefile("rwb", buffering=0) as lines:
                heard(lines, b"up\n")
                lines.write(b"start\n")
                heard(lines, b"started\n")
            yield made


def heard(lines: socket.SocketIO, wanted: bytes) -> None:
    """Wait until the guest's program says so; its socket has a limit."""
    while (line := lines.readline()) != wanted:
        assert line, "it has ended"


@pytest.fixture
def address(guest: Guest) -> AgentAddress:
    return AgentAddress(uri=guest.libvirtd.uri, domain=guest.name)


@in_soak
def test_a_point_of_a_frozen_guest(guest: Guest, address: AgentAddress, tmp_path: Path) -> None:
    eventually(lambda: answers(address), "the agent is connected", 60)
    with LibvirtCapture(tmp_path, guest) as capture:
        capture.start("--seal-every", "1h", "--consistency", "filesystem")
        point = capture.program.ok("points")[0]
        assert (point["consistency"], point["why"]) == ("filesystem", "")
        trimmed = capture.program.ok("pause", "web1", "--trim")
        assert sorted(trimmed["trimmed"]) == ["/a", "/b"]
        capture.follows()
        capture.stop()
    capture.program.restore(f"web1@{point['id']}", tmp_path / "back")
    for image in sorted((tmp_path / "back").glob("*.raw")):
        shown = subprocess.run(["dumpe2fs", "-h", image], check=True, capture_output=True, text=True).stdout
        assert "needs_recovery" not in shown
        subprocess.run(["e2fsck", "-fn", image], check=True, capture_output=True)


def answers(address: AgentAddress) -> bool:
    try:
        return bool(address.agent().execute("guest-fsfreeze-status", timeout=5) == "thawed")
    except AgentError:
        return False


def test_what_an_agent_refuses_is_told_from_one_that_is_not_there(guest: Guest, address: AgentAddress) -> None:
    eventually(lambda: answers(address), "the agent is connected", 60)
    with pytest.raises(AgentRefused, match="guest-exec"):
        address.agent().execute("guest-exec", {"path": "/no/such/program"}, timeout=5)
    with pytest.raises(AgentGone, match="there is no domain"):
        AgentAddress(uri=guest.libvirtd.uri, domain="nobody").agent().execute("guest-ping", timeout=5)
    with Guest(guest.libvirtd, "without", [(1 << 20, "raw")]) as without:
        there = AgentAddress(uri=guest.libvirtd.uri, domain="without").agent()
        with pytest.raises(AgentGone, match="not running"):
            there.execute("guest-ping", timeout=5)
        without.start()  # its processor stands still: no agent of it can answer
        with pytest.raises(AgentError, match="domain is not running") as raised:
            there.execute("guest-ping", timeout=5)
        assert not isinstance(raised.value, AgentRefused | AgentGone)
