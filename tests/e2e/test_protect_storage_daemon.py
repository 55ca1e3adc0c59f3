# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen protect` on a storage daemon whose disks are in use over its NBD server, which is shared and never stopped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from everywhen.capture.nbd_server import LODGER
from everywhen.capture.qmp import CommandFailed
from everywhen.nbd.connection import NbdConnection
from tests.captures import Capture
from tests.hypervisor import Hypervisor, eventually
from tests.long_forms import in_soak
from tests.program import Program
from tests.storage_daemon import MIB, StorageDaemon

SIZES = (4 * MIB, 2 * MIB)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[StorageDaemon]:
    with StorageDaemon(tmp_path, SIZES) as running:
        yield running


def same(program: Program, daemon: StorageDaemon) -> None:
    """The newest point holds what the disks hold."""
    for name, content in daemon.content().items():
        program.restore(f"web1/{name}", program.folder / "back.raw", "--overwrite")
        assert (program.folder / "back.raw").read_bytes() == content, f"{name} differs"


def test_its_clients_and_its_server_stay(program: Program, daemon: StorageDaemon) -> None:
    with NbdConnection(str(daemon.socket), "vda", timeout=10) as guest:
        guest.answer(guest.send(0, b"a" * 4096))
        with Capture(program, "web1", daemon.qmp).followed() as capture:
            guest.answer(guest.send(MIB, b"b" * 65536))
            guest.answer(guest.send_zeroes(2 * MIB, 65536))
            capture.stop()
        same(program, daemon)
        guest.answer(guest.send(3 * MIB, b"c" * 4096))
        with Capture(program, "web1", daemon.qmp).followed() as capture:
            capture.stop()
        same(program, daemon)
        assert guest.answer(guest.ask(MIB, 4096)).data == b"b" * 4096
    newest = program.ok("points", "web1")[0]
    assert newest["disks"]["vda"]["bytes_read"] == 65536, "by the bitmap, which was read through the daemon's own server"
    assert daemon.ours() == {f"everywhen-{newest['id']}-{name}" for name in daemon.disks}


def test_what_a_run_killed_at_its_copy_left_is_taken_away_and_nothing_else(program: Program, daemon: StorageDaemon) -> None:
    with NbdConnection(str(daemon.socket), "vdb", timeout=10) as guest:
        with Capture(program, "web1", daemon.qmp, "--pace", "200k") as capture:
            eventually(lambda: LODGER in daemon.ours(), "the copy goes on")
            capture.kill()
        assert LODGER in daemon.ours()
        with Capture(program, "web1", daemon.qmp).followed() as capture:
            capture.stop()
        guest.answer(guest.send(0, b"d" * 4096))
        assert guest.answer(guest.ask(0, 4096)).data == b"d" * 4096


def test_a_server_that_cannot_be_found(program: Program, tmp_path: Path) -> None:
    with StorageDaemon(tmp_path, SIZES, address="addr.type=inet,addr.host=127.0.0.1,addr.port=0") as daemon:
        done = program.run("protect", "web1", "--qmp", daemon.qmp)
        assert done.code == 1
        assert "was found at no unix socket of this host" in done.err
        assert daemon.ours() == set()
        assert len(daemon.monitor.execute("query-block-exports")) == len(daemon.disks)


@in_soak
def test_a_server_that_has_no_export_yet(program: Program, tmp_path: Path) -> None:
    """No command tells of it, and only one can be in a QEMU: it is used, and it stays, after a kill of ours, too."""
    theirs = tmp_path / "theirs.sock"
    with Hypervisor(tmp_path, [4 * MIB]) as hypervisor:
        hypervisor.write(0, 0, 2 * MIB, 1)
        hypervisor.monitor.execute("nbd-server-start", {"addr": {"type": "unix", "data": {"path": str(theirs)}}})
        with Capture(program, "web1", hypervisor.qmp, "--pace", "200k") as capture:
            eventually(lambda: LODGER in hypervisor.ours(), "the copy goes on")
            capture.kill()
        with Capture(program, "web1", hypervisor.qmp, "--pace", "0").followed() as capture:
            assert LODGER not in hypervisor.ours()
            hypervisor.write(0, MIB, MIB, 2)
            capture.stop()
        program.restore("web1/vd0", tmp_path / "back.raw")
        assert (tmp_path / "back.raw").read_bytes() == hypervisor.content(0)
        hypervisor.monitor.execute("block-export-add", {"type": "nbd", "id": "e", "node-name": "node0", "name": "e"})
        NbdConnection(str(theirs), "e", timeout=10).close()


def test_a_fuse_export_is_refused_as_doctor_says(program: Program, daemon: StorageDaemon) -> None:
    mounted = program.folder / "mounted"
    mounted.touch()
    daemon.monitor.execute("block-export-del", {"id": "vdb"})
    fuse = {"type": "fuse", "id": "vdf", "node-name": "node-vdb", "mountpoint": str(mounted), "writable": True}
    try:
        daemon.monitor.execute("block-export-add", fuse)
    except CommandFailed as error:
        pytest.skip(f"no FUSE export can be made here: {error}")
    try:
        seen = program.run("doctor", "web1", "--qmp", daemon.qmp)
        assert (seen.code, "it may resize the disk" in seen.out) == (5, True), seen
        done = program.run("protect", "web1", "--qmp", daemon.qmp)
        assert (done.code, "it may resize the disk" in done.err, daemon.ours()) == (1, True, set()), done
    finally:
        daemon.monitor.execute("block-export-del", {"id": "vdf"})
