# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which disks `everywhen protect` takes on a real QEMU: what it leaves out it says, what it could not keep it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from everywhen.block.target_mark import Mark, leave_mark, mark_path
from tests.captures import Capture
from tests.hypervisor import Hypervisor
from tests.processes import running
from tests.program import Program

MIB = 1 << 20


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[Hypervisor]:
    """Two plain disks; UEFI's variables; one that others may write to; one on a device without a name."""
    for name in ("code", "flash", "shared", "nameless"):
        (tmp_path / f"{name}.raw").write_bytes(bytes(MIB))
    more = ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={tmp_path}/code.raw"]
    more += ["-drive", f"if=pflash,unit=1,format=raw,file={tmp_path}/flash.raw"]
    more += ["-blockdev", f"driver=file,node-name=shared,filename={tmp_path}/shared.raw"]
    more += ["-device", "virtio-scsi-pci,id=scsi", "-device", "scsi-hd,drive=shared,id=shared,share-rw=on"]
    more += ["-blockdev", f"driver=raw,node-name=nameless,file.driver=file,file.filename={tmp_path}/nameless.raw"]
    more += ["-device", "virtio-blk-pci,drive=nameless"]
    with Hypervisor(tmp_path, [MIB, MIB], more=more) as running:
        yield running


def test_a_disk_that_cannot_be_kept_refuses_the_vm(program: Program, odd: Hypervisor) -> None:
    done = program.run("protect", "web1", "--qmp", odd.qmp, "--json")
    assert done.code == 1, done
    assert done.error["what"].startswith("web1 cannot be captured: shared: it may be written to by others")
    assert done.error["do"][-1] == "Or protect only what can be: --disk vd0 --disk vd1 --disk device-0"
    assert odd.ours() == set()
    assert program.ok("points") == []


def test_a_half_restored_disk_is_no_disk_of_a_moment(program: Program, odd: Hypervisor) -> None:
    image = odd.images[1]
    leave_mark(mark_path(str(image)), Mark("web1/vd1@12:00", str(image), MIB))
    done = program.run("protect", "web1", "--qmp", odd.qmp, "--disk", "vd0", "--disk", "vd1", "--json")
    assert done.code == 1, done
    assert f"vd1: {image} is a mixture of two moments" in done.error["what"]
    assert done.error["do"][-1] == "Or protect only what can be: --disk vd0"
    assert odd.ours() == set()
    looked = program.run("doctor", "--qmp", odd.qmp)
    assert looked.code == 5
    assert "is a mixture of two moments" in looked.out


def test_those_that_are_named(program: Program, odd: Hypervisor) -> None:
    with Capture(program, "web1", odd.qmp, "--pace", "0", "--disk", "vd1", "--disk", "data=nameless") as capture:
        status = capture.followed().ask({"wish": "status"})
        assert status["disks"] == ["vd1", "data"]
        assert set(status["left_out"]) == {"vd0", "shared", "system.flash1"}
        assert "not captured: " in program.run("status", "web1").out
        odd.write(1, 0, 4096, 7)
        odd.monitor.execute("device_del", {"id": "shared"})
        assert capture.ask({"wish": "mark", "text": "a disk is gone"}).get("point")
        capture.stop()
    first = capture.said.splitlines()[0]
    assert first.startswith("web1: capture attached to vd1, data. Not captured: ")
    assert "system.flash1 (flash memory of the firmware (UEFI's variables)" in first
    assert "capture was lost" not in capture.said
    disks = program.ok("points", "web1")[0]["disks"]
    assert set(disks) == {"vd1", "data"}
    assert program.run("restore", "web1/vd1", "--to", program.folder / "back.raw").code == 0
    assert (program.folder / "back.raw").read_bytes()[:4096] == bytes([7]) * 4096


@pytest.mark.parametrize(
    ("given", "code", "why"),
    [
        (["--disk", "vd9"], 1, "it has no disk vd9"),
        (["--disk", "data=nowhere"], 1, "no disk stands on a node nowhere"),
        (["--disk", "shared"], 1, "shared: it may be written to by others"),
        (["--disk", "vd0="], 2, "is not DISK or DISK=NODE"),
        (["--disk", "vd0", "--disk", "vd0"], 2, "given twice"),
    ],
)
def test_what_is_refused(program: Program, odd: Hypervisor, given: list[str], code: int, why: str) -> None:
    done = program.run("protect", "web1", "--qmp", odd.qmp, *given)
    assert done.code == code, done
    assert why in done.err
    assert odd.ours() == set()


def test_a_vm_whose_writes_go_past_qemu_is_refused(program: Program, tmp_path: Path) -> None:
    (tmp_path / "user.raw").write_bytes(bytes(MIB))
    command = ["qemu-storage-daemon", "--blockdev", f"driver=file,node-name=user,filename={tmp_path}/user.raw"]
    command += ["--export", f"id=user,node-name=user,type=vhost-user-blk,writable=on,addr.type=unix,addr.path={tmp_path}/user"]
    with running(command, tmp_path, (tmp_path / "user").exists):
        more = ["-object", "memory-backend-memfd,id=mem,size=32M,share=on", "-machine", "memory-backend=mem"]
        more += ["-chardev", f"socket,id=user,path={tmp_path}/user", "-device", "vhost-user-blk-pci,chardev=user,id=user"]
        with Hypervisor(tmp_path, [MIB], more=more) as machine:
            done = program.run("protect", "web1", "--qmp", machine.qmp)
            assert done.code == 1, done
            assert "web1 cannot be captured: user: a vhost-user disk" in done.err
            assert "--disk vd0" in done.err
            assert machine.ours() == set()


def test_read_only_exports_are_no_disks(program: Program, tmp_path: Path) -> None:
    command = ["qemu-storage-daemon", "--nbd-server", f"addr.type=unix,addr.path={tmp_path}/nbd"]
    command += ["--chardev", f"socket,id=qmp,path={tmp_path}/qmp.sock,server=on,wait=off", "--monitor", "chardev=qmp"]
    for name, more in {"looked-at": "", "written": ",writable=on"}.items():
        (tmp_path / f"{name}.raw").write_bytes(bytes(MIB))
        command += ["--blockdev", f"driver=file,node-name={name},filename={tmp_path}/{name}.raw"]
        command += ["--export", f"id={name},node-name={name},type=nbd{more}"]
    qmp = tmp_path / "qmp.sock"
    with running(command, tmp_path, qmp.exists), Capture(program, "web1", qmp, "--pace", "0") as capture:
        assert capture.followed().ask({"wish": "status"})["disks"] == ["written"]
        capture.stop()
