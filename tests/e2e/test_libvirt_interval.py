# SPDX-License-Identifier: AGPL-3.0-or-later
"""Points at intervals of a libvirt domain: between two nothing of ours stands in an administrator's way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

libvirt = pytest.importorskip("libvirt", reason="libvirt's Python library is not installed")

from tests.hypervisor import eventually
from tests.libvirt_capture import LibvirtCapture
from tests.libvirtd import Guest, Libvirtd
from tests.long_forms import in_soak

pytestmark = pytest.mark.xdist_group("libvirt")
MIB = 1 << 20


@pytest.fixture
def guest(libvirtd: Libvirtd) -> Iterator[Guest]:
    with Guest(libvirtd, "apart", [(8 * MIB, "qcow2"), (4 * MIB, "raw")]) as made:
        made.start()
        made.write(0, 0, MIB, 1)
        made.write(1, MIB, MIB, 2)
        yield made


def marked(capture: LibvirtCapture, text: str) -> None:
    answer = capture.wish("mark", text=text)
    assert "error" not in answer, answer


@in_soak
def test_what_is_refused_under_a_tap_is_not_between_two_points(tmp_path: Path, guest: Guest) -> None:
    """A snapshot and its commit, and a resize."""
    with LibvirtCapture(tmp_path, guest) as capture:
        capture.start("--interval", "1h")
        eventually(lambda: not any("tap" in name for name in guest.ours()), "the taps are off")
        guest.write(0, 2 * MIB, 65536, 3)
        guest.raw.snapshotCreateXML(
            "<domainsnapshot><name>outside</name><disks><disk name='vdb' snapshot='no'/></disks></domainsnapshot>",
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA,
        )
        guest.write(0, 3 * MIB, 65536, 4)
        marked(capture, "on the snapshot")
        guest.write(0, 4 * MIB, 65536, 5)
        guest.raw.blockCommit("vda", None, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)

        def caught_up() -> bool:
            info = guest.raw.blockJobInfo("vda")
            return bool(info) and info["cur"] == info["end"]

        eventually(caught_up, "the commit has caught up")
        guest.raw.blockJobAbort("vda", libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
        guest.write(0, 5 * MIB, 65536, 6)
        marked(capture, "committed")
        guest.raw.blockResize("vdb", 6 << 10)
        guest.write(1, 5 * MIB, 65536, 7)
        marked(capture, "larger")
        capture.stop()
        capture.same()
        newest = capture.points()[0]
        assert newest["disks"]["vdb"]["size"] == 6 * MIB
        assert newest["files"], "the definition is there"
        assert capture.program.ok("timeline", "web1")["every_write"] == []
