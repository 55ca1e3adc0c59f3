# SPDX-License-Identifier: AGPL-3.0-or-later
"""What an administrator does to a running VM that is under capture: each row of docs/libvirt.md, with a real libvirtd.

An operation may be refused, and may be said to be refused; it may never cost a write, a guest's error, or a wrong point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

libvirt = pytest.importorskip("libvirt", reason="libvirt's Python library is not installed")

from tests.hypervisor import eventually
from tests.libvirt_capture import LibvirtCapture
from tests.libvirtd import Guest, Libvirtd
from tests.long_forms import in_soak
from tests.program import ended

pytestmark = pytest.mark.xdist_group("libvirt")
MIB = 1 << 20


@pytest.fixture
def guest(libvirtd: Libvirtd) -> Iterator[Guest]:
    """With internal snapshots and checkpoints, which only qcow2 has."""
    with Guest(libvirtd, "operated", [(8 * MIB, "qcow2"), (4 * MIB, "qcow2")]) as made:
        made.start()
        made.write(0, 0, MIB, 1)
        made.write(1, MIB, MIB, 2)
        yield made
        for checkpoint in made.raw.listAllCheckpoints():
            checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
        for snapshot in made.raw.listAllSnapshots():
            snapshot.delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)


@pytest.fixture
def capture(tmp_path: Path, guest: Guest) -> Iterator[LibvirtCapture]:
    with LibvirtCapture(tmp_path, guest) as made:
        yield made


def external_snapshot(guest: Guest) -> None:
    name = f"outside{len(guest.raw.listAllSnapshots())}"
    xml = f"<domainsnapshot><name>{name}</name></domainsnapshot>"
    guest.raw.snapshotCreateXML(xml, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY)


def internal_snapshot(guest: Guest) -> None:
    guest.raw.snapshotCreateXML("<domainsnapshot><name>inside</name></domainsnapshot>", 0)


def pivot(guest: Guest) -> None:
    """The disk's copy has caught up, and takes its place."""

    # Not by the job's figures: at its beginning both may be the same, too (libvirt, virDomainGetBlockJobInfo).
    eventually(lambda: "ready='yes'" in guest.raw.XMLDesc(), "the copy has caught up")
    guest.raw.blockJobAbort("vda", libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)


def blockcommit(guest: Guest) -> None:
    guest.raw.blockCommit("vda", None, None, 0, libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE)
    pivot(guest)


def blockpull(guest: Guest) -> None:
    guest.raw.blockPull("vda")
    eventually(lambda: not guest.raw.blockJobInfo("vda"), "all is pulled")


def blockcopy(guest: Guest) -> None:
    xml = f"<disk type='file'><driver type='raw'/><source file='{guest.folder}/moved.raw'/></disk>"
    guest.raw.blockCopy("vda", xml, {}, libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB)
    pivot(guest)


def blockresize(guest: Guest) -> None:
    guest.raw.blockResize("vda", 12 * MIB, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)


def backup(guest: Guest) -> None:
    target = f"<target file='{guest.folder}/backup.raw'/><driver type='raw'/>"
    disks = f"<disk name='vda' type='file' backupmode='full'>{target}</disk><disk name='vdb' backup='no'/>"
    guest.raw.backupBegin(f"<domainbackup><disks>{disks}</disks></domainbackup>", None)
    eventually(lambda: guest.raw.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE, "it is backed up")


def backup_pulled(guest: Guest) -> None:
    guest.folder.chmod(0o777)  # QEMU makes its socket there
    server = f"<server transport='unix' socket='{guest.folder}/pull'/>"
    scratch = f"<disk name='vda' type='file' backupmode='full'><scratch file='{guest.folder}/scratch'/></disk>"
    disks = f"<disks>{scratch}<disk name='vdb' backup='no'/></disks>"
    guest.raw.backupBegin(f"<domainbackup mode='pull'>{server}{disks}</domainbackup>", None)
    guest.raw.abortJob()


Operation = Callable[[Guest], None]
REFUSED: list[tuple[Operation, str]] = [
    (external_snapshot, "in use by block job: mirror"),
    (internal_snapshot, "Device 'everywhen-tap-0' is writable but does not support snapshots"),
    (blockcommit, "Need a root block node"),
    (blockpull, "in use by block job: mirror"),
    (blockcopy, "Need a root block node"),
    (blockresize, "is in use"),
    (backup, "in use by block job: mirror"),
    (backup_pulled, "in use by block job: mirror"),
]


def test_refused_while_every_write_is_captured(capture: LibvirtCapture, guest: Guest) -> None:
    external_snapshot(guest)  # there must be something to commit
    capture.start()
    for number, (operation, why) in enumerate(REFUSED):
        if operation is not external_snapshot:
            with pytest.raises(libvirt.libvirtError, match=why):
                operation(guest)
        guest.write(0, (1 + number) * MIB, 4096, 10 + number)
    assert capture.state == "following"
    assert "warning" not in capture.stop().err
    capture.same()


def test_an_external_snapshot_is_refused_while_every_write_is_captured(capture: LibvirtCapture, guest: Guest) -> None:
    capture.start()
    with pytest.raises(libvirt.libvirtError, match=REFUSED[0][1]):
        external_snapshot(guest)
    guest.write(0, 2 * MIB, 4096, 10)
    assert "warning" not in capture.stop().err
    capture.same()
    assert len(guest.images) == 2


@in_soak
def test_done_in_a_pause(capture: LibvirtCapture, guest: Guest) -> None:
    """One after the other, so each is also done to what the others have left."""
    capture.start()
    operations = [
        external_snapshot,
        blockcommit,
        internal_snapshot,
        blockresize,
        backup,
        blockcopy,
        external_snapshot,
        blockpull,
    ]
    for number, operation in enumerate(operations):
        capture.pause()
        guest.write(0, number * 65536, 4096, 20 + number)
        operation(guest)
        guest.write(0, MIB + number * 65536, 4096, 30 + number)
        capture.resume()
        if operation is internal_snapshot:
            assert capture.points()[0]["disks"]["vda"]["bytes_read"] <= 2 * 65536, "only what changed is read"
        capture.same()
        guest.write(0, 2 * MIB + number * 65536, 4096, 40 + number)
    capture.stop()
    capture.same()
    assert capture.points()[0]["disks"]["vda"]["size"] == 12 * MIB
    newest = capture.points()[0]["id"]
    assert {name for name in guest.ours() if newest in name} == {f"everywhen-{newest}-vda", f"everywhen-{newest}-vdb"}
    assert all(name.startswith("everywhen-p-") for name in guest.ours()), "bitmaps alone"


def test_what_goes_on_beside_capture(capture: LibvirtCapture, guest: Guest) -> None:
    capture.start()
    done: dict[str, Callable[[Any], Any]] = {
        "resume": lambda raw: raw.resume(),
        "suspend": lambda raw: raw.suspend(),
        "reset": lambda raw: raw.reset(),
        "blkdeviotune": lambda raw: raw.setBlockIoTune("vda", {"total_iops_sec": 10_000}, libvirt.VIR_DOMAIN_AFFECT_LIVE),
        "checkpoint-create": lambda raw: raw.checkpointCreateXML("<domaincheckpoint><name>c</name></domaincheckpoint>"),
        "checkpoint-delete": lambda raw: raw.checkpointLookupByName("c").delete(),
        "domblkstat": lambda raw: raw.blockStats("vda"),
        "dumpxml": lambda raw: raw.XMLDesc(),
    }
    for number, operation in enumerate(done.values()):
        operation(guest.raw)
        guest.write(0, number * MIB, 4096, 50 + number)
    assert capture.state == "following"
    assert "warning" not in capture.stop().err
    capture.same()


def test_undefined_and_defined_again(capture: LibvirtCapture, guest: Guest) -> None:
    capture.start()
    xml = guest.domain.xml(running=False)
    guest.raw.undefine()
    guest.write(0, 5 * MIB, 512, 4)
    guest.libvirtd.connection.defineXML(xml)
    assert "warning" not in capture.stop().err
    capture.same()


def test_a_disk_attached_and_detached(capture: LibvirtCapture, guest: Guest) -> None:
    capture.start("--seal-every", "1s")
    xml = guest.another_disk("sda", MIB)
    guest.raw.attachDevice(xml)
    eventually(lambda: "sda" in capture.points()[0]["disks"], "the new disk is in a point")
    capture.follows()
    guest.write(2, 0, 4096, 6)
    capture.another_point()
    capture.same()
    # This bus asks no guest: it is gone when libvirt says so.
    guest.raw.detachDevice(xml)
    eventually(lambda: "sda" not in capture.points()[0]["disks"], "points are without it")
    image = guest.images.pop()
    nodes = guest.execute("query-named-block-nodes", {"flat": True})
    assert not [node["file"] for node in nodes if node["file"] == str(image)], "it is closed"
    # What is attached in its place is tapped, too.
    guest.images.append(image)
    guest.raw.attachDevice(xml)
    eventually(lambda: "sda" in capture.points()[0]["disks"], "it is in a point again")
    capture.follows()
    guest.write(2, 8192, 4096, 7)
    done = capture.stop()
    assert "sda was detached" in done.err
    capture.same()


def test_saved_and_restored(capture: LibvirtCapture, guest: Guest) -> None:
    capture.start()
    guest.write(0, 5 * MIB, 4096, 4)
    guest.raw.managedSave()
    eventually(lambda: capture.state != "following", "the end is noticed")
    guest.start()
    guest.write(0, 6 * MIB, 4096, 5)
    capture.follows()
    assert "the VM was saved to a file and ended" in capture.stop().err
    capture.same()


@pytest.mark.parametrize(
    "meanwhile", ["following", pytest.param("paused", marks=in_soak), pytest.param("ended", marks=in_soak)]
)
def test_set_back_to_a_snapshot(capture: LibvirtCapture, guest: Guest, meanwhile: str) -> None:
    internal_snapshot(guest)
    capture.start()
    guest.write(0, 5 * MIB, 4096, 4)
    if meanwhile == "paused":
        capture.pause()
    elif meanwhile == "ended":
        capture.stop()
    guest.raw.revertToSnapshot(guest.raw.snapshotLookupByName("inside"))
    if meanwhile == "following":
        eventually(lambda: capture.state != "following", "it is noticed")
        capture.follows()
    elif meanwhile == "paused":
        capture.resume()
    else:
        capture.start()
    guest.write(0, 6 * MIB, 4096, 5)
    assert ("capture was lost" in capture.stop().err) == (meanwhile == "following")
    assert guest.content(0)[5 * MIB] == 0
    capture.same()


def test_a_snapshot_with_its_memory(capture: LibvirtCapture, guest: Guest) -> None:
    """libvirt has QEMU migrate its guest into a file for that, before the disks' turn comes."""

    def snapshot() -> None:
        memory = f"<memory snapshot='external' file='{guest.folder}/memory'/>"
        guest.raw.snapshotCreateXML(f"<domainsnapshot><name>whole</name>{memory}</domainsnapshot>", 0)

    guest.raw.resume()  # of one that stands still QEMU would not open the images to write again
    capture.start()
    with pytest.raises(libvirt.libvirtError, match="in use by block job: mirror"):
        snapshot()
    guest.write(0, 5 * MIB, 4096, 4)
    assert capture.state == "following"
    capture.pause()
    snapshot()
    guest.write(0, 6 * MIB, 4096, 5)
    capture.resume()
    assert "warning" not in capture.stop().err
    capture.same()


@in_soak
def test_renamed(capture: LibvirtCapture, guest: Guest) -> None:
    """Where it is named by its UUID, capture finds it again by itself."""
    capture.start("--domain", guest.domain.uuid)
    guest.write(0, 5 * MIB, 4096, 4)
    guest.raw.destroy()
    eventually(lambda: capture.state == "off", "the end is noticed")
    guest.raw.rename("renamed")
    guest.name = "renamed"
    guest.start()
    capture.follows()
    guest.write(0, 6 * MIB, 4096, 5)
    capture.stop()
    capture.same()
    assert all(point["disks"]["vda"]["bytes_stored"] < MIB / 2 for point in capture.points()[:-1])


@in_soak
def test_virtnbdbackup_in_a_pause(capture: LibvirtCapture, guest: Guest, tmp_path: Path) -> None:
    capture.start()
    # It wants a name and a password for any address that has a plus in it; libvirtd asks for none.
    command = ["virtnbdbackup", "-d", guest.name, "-U", guest.libvirtd.uri, "--user", "-", "--password", "-", "-n"]
    command += ["-l", "full", "-o", str(tmp_path / "theirs")]
    done = ended(capture.program.start("pause", "web1", "--for", "5m", "--", *command))
    assert done.code == 0, done
    assert list((tmp_path / "theirs").glob("vda*"))
    capture.follows()
    guest.write(0, 6 * MIB, 4096, 5)
    capture.stop()
    capture.same()
    assert capture.points()[0]["disks"]["vda"]["bytes_read"] <= 2 * 65536, "only what changed was read"


@in_soak
def test_anothers_backup_runs_when_the_pause_ends(capture: LibvirtCapture, guest: Guest) -> None:
    capture.start()
    capture.pause()
    guest.folder.chmod(0o777)  # QEMU makes its socket there
    socket = f"<server transport='unix' socket='{guest.folder}/pull'/>"
    scratch = f"<disk name='vda' type='file' backupmode='full'><scratch file='{guest.folder}/scratch'/></disk>"
    xml = f"<domainbackup mode='pull'>{socket}<disks>{scratch}<disk name='vdb' backup='no'/></disks></domainbackup>"
    guest.raw.backupBegin(xml, None)
    assert "error" not in capture.wish("resume")
    eventually(lambda: capture.state == "detached", "it cannot begin")
    guest.write(0, 3 * MIB, 4096, 8)
    assert guest.raw.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE, "the backup goes on"
    guest.raw.abortJob()
    capture.follows()
    said = capture.stop().err
    assert "vda: another tool's block job" in said, said
    capture.same()
