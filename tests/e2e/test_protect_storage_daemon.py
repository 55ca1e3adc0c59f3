# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen protect` on a storage daemon whose disks are in use over its NBD server, which is shared and never stopped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from everywhen.nbd.connection import NbdConnection
from tests.captures import Capture
from tests.hypervisor import eventually
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
            eventually(lambda: "everywhen-export" in daemon.ours(), "the copy goes on")
            capture.kill()
        assert "everywhen-export" in daemon.ours()
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
