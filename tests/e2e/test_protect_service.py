# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen protect` as systemd runs it: ready when every write is captured, alive, and patient."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.captures import Capture
from tests.hypervisor import Hypervisor, eventually
from tests.long_forms import in_soak
from tests.program import Program

MIB = 1 << 20


class Systemd:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self.told: list[dict[str, str]] = []

    def close(self) -> None:
        self._socket.close()

    def hear(self) -> None:
        """Take in what has come."""
        while True:
            try:
                message = self._socket.recv(65536).decode()
            except BlockingIOError:
                return
            self.told.append(dict(line.split("=", 1) for line in message.split("\n")))

    def was_told(self, name: str, begin: str = "1") -> bool:
        """Whether it was told an assignment that begins so."""
        self.hear()
        return any(message.get(name, "").startswith(begin) for message in self.told)

    @property
    def status(self) -> str:
        """The newest."""
        self.hear()
        return next((message["STATUS"] for message in reversed(self.told) if "STATUS" in message), "")

    def signs_of_life(self) -> int:
        """How many it has had."""
        self.hear()
        return sum("WATCHDOG" in message for message in self.told)


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    made = Systemd(tmp_path / "notify")
    yield made
    made.close()


@pytest.fixture
def program(tmp_path: Path, systemd: Systemd) -> Program:
    return Program(tmp_path, more={"NOTIFY_SOCKET": str(tmp_path / "notify")}).init()


@in_soak
def test_a_vm_that_is_off_on_and_off_again(program: Program, systemd: Systemd, tmp_path: Path) -> None:
    qmp = tmp_path / "qmp.sock"
    with Capture(program, "web1", qmp, "--pace", "0") as capture:
        eventually(lambda: systemd.status.startswith(f"Waiting for the VM ({qmp}: No such file"), "it waits")
        assert not systemd.was_told("READY")
        assert capture.state() == "off"
        with Hypervisor(tmp_path, [MIB, MIB]) as running:
            capture.followed()
            eventually(lambda: systemd.was_told("READY"), "it is ready")
            running.write(0, 0, 4096, 7)
            before = systemd.signs_of_life()
            eventually(lambda: systemd.status.startswith("Every write is captured; 1 of them"), "it tells how it stands")
            eventually(lambda: systemd.signs_of_life() > before + 2, "it tells that it lives")
            running.quit()
            eventually(lambda: systemd.status.startswith("Waiting for the VM"), "it waits again", 60)
            newest = program.ok("points", "web1")[0]["id"]
            assert systemd.status.endswith(f"in sync since recovery point {newest}")
            assert capture.ask({"wish": "status"})["in_sync"] is True
            program.restore("web1/vd0", tmp_path / "back.raw")
            assert (tmp_path / "back.raw").read_bytes() == running.content(0)
            running.start()
            capture.followed()
            running.write(0, 4096, 4096, 8)
            running.kill()
            eventually(lambda: capture.state() == "off", "it waits again", 60)
            assert capture.ask({"wish": "status"})["in_sync"] is False, "what a killed QEMU left behind nobody knows"
            systemd.hear()  # ten messages wait to be read; a full queue takes no more, and that is not waited for
            capture.stop()
            assert systemd.was_told("STOPPING")
            running.start()
    gaps = [line for line in capture.said.splitlines() if "capture was lost" in line]
    assert len(gaps) == 2


@in_soak
def test_one_that_was_waited_for_is_tried_again(program: Program, systemd: Systemd, tmp_path: Path) -> None:
    (tmp_path / "shared.raw").write_bytes(bytes(MIB))
    more = ["-blockdev", f"driver=file,node-name=shared,filename={tmp_path}/shared.raw"]
    more += ["-device", "virtio-scsi-pci,id=scsi", "-device", "scsi-hd,drive=shared,id=shared,share-rw=on"]
    with Capture(program, "web1", tmp_path / "qmp.sock", "--pace", "0") as capture:
        capture.reaches("off")
        with Hypervisor(tmp_path, [MIB], more=more) as running:
            capture.reaches("detached")
            assert systemd.status.startswith("Capture was lost (shared: it may be written to by others")
            assert not systemd.was_told("READY")
            running.monitor.execute("device_del", {"id": "shared"})
            capture.followed().stop()


def test_a_vm_that_went_elsewhere_is_not_in_sync(program: Program, tmp_path: Path) -> None:
    with Hypervisor(tmp_path, [MIB]) as running:
        with Capture(program, "web1", running.qmp, "--pace", "0") as capture:
            capture.followed()
            running.monitor.execute("cont")
            running.monitor.execute("migrate", {"uri": "exec:cat > /dev/null"})
            eventually(lambda: running.monitor.execute("query-migrate").get("status") == "completed", "it is elsewhere")
            running.quit()
            capture.reaches("off")
            assert capture.ask({"wish": "status"})["in_sync"] is False
        running.start()


@in_soak
def test_on_a_terminal_only_what_was_captured_before_is_waited_for(tmp_path: Path) -> None:
    program = Program(tmp_path).init()
    done = program.run("protect", "web1", "--qmp", tmp_path / "qmp.sock")
    assert done.code == 1, done
    assert "cannot be captured" in done.err
    with Hypervisor(tmp_path, [MIB]) as running:
        with Capture(program, "web1", running.qmp, "--pace", "0") as capture:
            capture.followed().stop()
        running.quit()
        with Capture(program, "web1", running.qmp, "--pace", "0") as capture:
            capture.reaches("off")
            running.start()
            running.write(0, 0, 4096, 3)
            capture.followed().stop()
        program.restore("web1/vd0", tmp_path / "back.raw")
        assert (tmp_path / "back.raw").read_bytes() == running.content(0)
        running.quit()
        with Capture(program, "web1", running.qmp, "--pace", "0") as capture:
            capture.reaches("off")
            assert program.run("mark", "web1", "now").code == 1
            program.ok("unprotect", "web1")
            assert capture.process.wait(20) == 0
        running.start()
