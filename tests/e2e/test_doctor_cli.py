# SPDX-License-Identifier: AGPL-3.0-or-later
"""`everywhen doctor` on a real QEMU with one of each: it tells what can be protected and what cannot, and changes nothing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from everywhen.capture.qmp import QmpMonitor
from tests.hypervisor import Hypervisor
from tests.processes import running
from tests.program import Program

MIB = 1 << 20
QUERIES = ["query-block", "query-block-jobs", "query-block-exports", "query-named-block-nodes", "x-debug-query-block-graph"]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a storage daemon that serves a vhost-user disk and an NBD disk, and has an iothread."""
    folder = tmp_path_factory.mktemp("daemon")
    command = ["qemu-storage-daemon", "--object", "iothread,id=io0", "--nbd-server", f"addr.type=unix,addr.path={folder}/nbd"]
    command += ["--chardev", f"socket,id=qmp,path={folder}/qmp.sock,server=on,wait=off", "--monitor", "chardev=qmp"]
    for name, more in {"user": f"type=vhost-user-blk,addr.type=unix,addr.path={folder}/user", "net": "type=nbd"}.items():
        (folder / name).with_suffix(".raw").write_bytes(bytes(MIB))
        command += ["--blockdev", f"driver=file,node-name={name},filename={folder}/{name}.raw"]
        command += ["--export", f"id={name}-export,node-name={name},writable=on,{more}"]
    with running(command, folder, lambda: (folder / "user").exists() and (folder / "qmp.sock").exists()):
        yield folder


def attached(kind: str, name: str, blockdev: str, device: str) -> list[str]:
    return ["-blockdev", f"{blockdev},node-name={name}-node", "-device", f"{kind},drive={name}-node,id={name}{device}"]


@pytest.fixture(scope="module")
def zoo(daemon: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hypervisor]:
    """A disk of each kind; another tool mirrors the second of the plain ones and has begun a backup of the third."""
    folder = tmp_path_factory.mktemp("zoo")
    (folder / "medium.raw").write_bytes(bytes(MIB))
    (folder / "shared.raw").write_bytes(bytes(MIB))
    for name, compat in (("old", "0.10"), ("new", "1.1")):
        image = folder / f"{name}.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"compat={compat}", image, "1M"], check=True)
    more = ["-object", "memory-backend-memfd,id=mem,size=32M,share=on", "-machine", "memory-backend=mem"]
    more += ["-chardev", f"socket,id=user,path={daemon}/user", "-device", "vhost-user-blk-pci,chardev=user,id=user"]
    more += ["-device", "virtio-scsi-pci,id=scsi0", "-device", "virtio-scsi-pci,id=scsi1,iothread=io0"]
    more += ["-object", "iothread,id=new"]  # of the same name as a disk, which must not be taken for it
    more += attached("scsi-hd", "old", f"driver=qcow2,file.driver=file,file.filename={folder}/old.qcow2", ",bus=scsi0.0")
    more += attached("scsi-hd", "new", f"driver=qcow2,file.driver=file,file.filename={folder}/new.qcow2", ",bus=scsi1.0")
    more += ["-device", "scsi-cd,id=empty,bus=scsi0.0"]
    more += attached("ide-cd", "cd", f"driver=file,filename={folder}/medium.raw,read-only=on", "")
    more += attached("virtio-blk-pci", "net", f"driver=nbd,server.type=unix,server.path={daemon}/nbd,export=net", "")
    more += attached("virtio-blk-pci", "shared", f"driver=file,filename={folder}/shared.raw", ",share-rw=on")
    more += ["-device", "virtio-blk-pci,drive=shared-node,id=again,share-rw=on"]
    with Hypervisor(folder, [MIB, MIB, MIB], more=more) as running:
        for target in ("theirs1", "theirs2"):
            running.monitor.execute("blockdev-add", {"driver": "null-co", "node-name": target, "size": MIB})
        mirror = {"job-id": "mirror0", "device": "node1", "target": "theirs1", "sync": "none"}
        running.monitor.execute("blockdev-mirror", mirror)
        backup = {"job-id": "drive-virtio2", "device": "node2", "target": "theirs2", "sync": "none"}
        running.monitor.execute("blockdev-backup", backup)
        yield running


def everything(hypervisor: Hypervisor) -> str:
    answers = [hypervisor.monitor.execute(query) for query in QUERIES]
    return json.dumps(answers, sort_keys=True)


def by_device(document: Any) -> dict[str, dict[str, Any]]:
    return {disk["device"]: disk for vm in document["vms"] for disk in vm["disks"]}


def checks(document: Any) -> list[dict[str, str]]:
    return [check for one in (*document["vms"], document) for check in one["checks"]]


def test_one_of_each(program: Program, zoo: Hypervisor) -> None:
    before, files = everything(zoo), sorted(zoo.folder.iterdir())
    done = program.run("doctor", "web1", "--qmp", zoo.qmp, "--json")
    assert done.code == 5, done
    found = by_device(done.document)
    assert {name: disk["verdict"] for name, disk in found.items()} == {
        "vd0": "yes",
        "vd1": "no",
        "vd2": "no",
        "old": "yes",
        "new": "with care",
        "net": "yes",
        "shared": "no",
        "again": "no",
        "empty": "left out",
        "cd": "left out",
        "user": "no",
    }
    why = {name: " | ".join(reason["why"] for reason in disk["reasons"]) for name, disk in found.items()}
    assert '"mirror0" (mirror)' in why["vd1"]
    assert '"drive-virtio2" (backup)' in why["vd2"]
    assert "iothread" in why["new"]
    assert found["new"]["first_copy"] == "pushed by its tap"
    assert "also as again" in why["shared"]
    assert "share-rw" in why["again"]
    assert "vhost-user" in why["user"]
    assert (why["empty"], why["cd"].split(",")[0]) == ("a CD-ROM drive, and it is empty", "a CD-ROM drive")
    assert {name: found[name]["format"] for name in ("vd0", "vd1", "vd2", "old", "new", "net")} == {
        "vd0": "raw on file",
        "vd1": "raw on file",
        "vd2": "raw on file",
        "old": "qcow2 v2 on file",
        "new": "qcow2 v3 on file",
        "net": "nbd",
    }
    assert "bitmap possible" in found["new"]["after_qemu"]
    assert "bitmap" not in found["old"]["after_qemu"]
    assert everything(zoo) == before
    assert sorted(zoo.folder.iterdir()) == files


def test_as_a_table(program: Program, zoo: Hypervisor) -> None:
    before = everything(zoo)
    done = program.run("doctor", "web1", "--qmp", zoo.qmp)
    assert done.code == 5
    assert "web1: 4 of 9 disks can be protected." in done.out
    unseen = "Disks that the guest itself reaches over a network (iSCSI, NFS) cannot be seen from here, and are in no point."
    assert unseen in " ".join(done.out.split())
    assert done.out.endswith("Nothing was changed.\n")
    assert "spool: with care: " in done.out, "the spool would lie beside the images"
    assert everything(zoo) == before
    assert not (program.folder / "host").exists()
    assert zoo.ours() == set()


def test_a_storage_daemon(program: Program, daemon: Path) -> None:
    done = program.run("doctor", "--qmp", daemon / "qmp.sock", "--json")
    assert done.code == 0, done
    found = by_device(done.document)
    assert {name: disk["verdict"] for name, disk in found.items()} == {"user-export": "yes", "net-export": "yes"}
    assert found["user-export"]["first_copy"] == "image read beside QEMU"


def test_all_is_well_until_another_tool_exports(program: Program, tmp_path: Path) -> None:
    with Hypervisor(tmp_path, [MIB]) as running:
        done = program.run("doctor", "--qmp", running.qmp, "--json")
        assert done.code == 0, done
        assert by_device(done.document)["vd0"]["verdict"] == "yes"
        assert {check["check"]: check["verdict"] for check in checks(done.document)} == {
            "QEMU": "yes",
            "folder": "yes",
            "spool": "with care",
            "repository": "yes",
            "place": "with care",  # image, spool and repository lie on one file system in this test
            "clock": "yes",
        }
        address = {"addr": {"type": "unix", "data": {"path": str(tmp_path / "theirs")}}}
        running.monitor.execute("nbd-server-start", address)
        running.monitor.execute("block-export-add", {"type": "nbd", "id": "theirs", "node-name": "node0"})
        before = everything(running)
        done = program.run("doctor", "--qmp", running.qmp, "--json")
        assert (done.code, by_device(done.document)["vd0"]["verdict"]) == (0, "with care"), done
        assert everything(running) == before


def test_a_capture_that_runs_has_the_monitor(program: Program, tmp_path: Path) -> None:
    with Hypervisor(tmp_path, [MIB]) as running, QmpMonitor.connect(str(running.qmp)):
        done = program.run("doctor", "--qmp", running.qmp, "--json")
    assert done.error["code"] == "failed"
    assert "one client at a time" in done.error["do"][0]


def test_this_host_alone(program: Program) -> None:
    assert program.run("doctor").code == 0
    program.environment["EVERYWHEN_REPO"] = str(program.folder / "none")
    (program.folder / "file").touch()
    program.environment["EVERYWHEN_STATE"] = str(program.folder / "file" / "host")
    done = program.run("doctor", "--json")
    assert done.code == 5
    bad = {check["check"] for check in done.document["checks"] if check["verdict"] == "no"}
    assert bad == {"folder", "repository"}
    program.later_s = -40 * 365 * 86400
    done = program.run("doctor", "--json")
    assert "clock" in {check["check"] for check in done.document["checks"] if check["verdict"] == "no"}


def test_a_vm_that_is_nowhere(program: Program, tmp_path: Path) -> None:
    assert program.run("doctor", "web1").code == 2
    assert program.run("doctor", "Web 1", "--qmp", tmp_path / "none.sock").code == 2
    done = program.run("doctor", "web1", "--qmp", tmp_path / "none.sock")
    assert done.code == 1
    assert "cannot be asked" in done.err
    assert "Traceback" not in done.err
