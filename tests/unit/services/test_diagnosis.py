# SPDX-License-Identifier: AGPL-3.0-or-later
"""What follows from what a monitor told: each judgement, from the facts of one disk or one hypervisor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from everywhen.block.target_mark import Mark, leave_mark, mark_path
from everywhen.capture.answers import BlockExport, Drive, Job
from everywhen.capture.nodes import DiskNode
from everywhen.capture.survey import DiskSeen, Survey
from everywhen.services.diagnosis import Verdict, judge, judge_disk, judge_domain, judge_hypervisor, worst

STATE = Path("/nonexistent")
NODE = DiskNode("vd0", "node0", 1 << 20, False, "/machine/peripheral/vd0")
PLAIN = DiskSeen(NODE, "virtio-blk-pci", ("raw", "file"), "/images/a.raw", None, (), (), shared=False, passed_through=False)
VM = Survey((7, 2, 22), (), (PLAIN,), (), {"vd0": "virtio-blk-pci"}, (), ours=False)


def test_a_plain_disk() -> None:
    (disk,) = judge(VM, STATE)
    assert (disk.verdict, disk.reasons, disk.format, disk.first_copy) == (Verdict.YES, (), "raw on file", "read-only export")
    assert [check.verdict for check in judge_hypervisor(VM)] == [Verdict.YES]


def test_a_disk_with_an_iothread() -> None:
    disk = judge_disk(replace(PLAIN, disk=replace(NODE, iothread=True)), VM, STATE)
    (reason,) = disk.reasons
    assert (disk.verdict, reason.verdict, disk.first_copy) == (Verdict.YES, Verdict.YES, "image read beside QEMU")
    assert "an iothread serves it" in reason.why
    assert disk.iothread


@pytest.mark.parametrize(
    ("seen", "verdict", "words"),
    [
        (replace(PLAIN, jobs=(Job("drive-virtio0", "backup", "running"),)), Verdict.NO, '"drive-virtio0" (backup)'),
        (replace(PLAIN, passed_through=True), Verdict.NO, "a LUN that is passed through"),
        (replace(PLAIN, beside=("vd7",)), Verdict.NO, "attached twice, also as vd7"),
        (replace(PLAIN, shared=True), Verdict.NO, "written to by others"),
        (replace(PLAIN, transient=True), Verdict.NO, "it is transient"),
        (replace(PLAIN, disk=replace(NODE, iothread=True), drivers=("qcow2", "file")), Verdict.CARE, "all of it is sent again"),
        (replace(PLAIN, drivers=("copy-before-write", "raw", "file")), Verdict.CARE, "copy-before-write"),
    ],
)
def test_what_stands_in_the_way(seen: DiskSeen, verdict: Verdict, words: str) -> None:
    disk = judge_disk(seen, VM, STATE)
    assert disk.verdict is verdict
    assert words in disk.reasons[0].why
    assert len(disk.reasons) == 1


def test_all_reasons_are_told_and_the_worst_decides() -> None:
    seen = replace(PLAIN, shared=True, drivers=("copy-before-write", "raw", "file"))
    disk = judge_disk(seen, VM, STATE)
    assert [reason.verdict for reason in disk.reasons] == [Verdict.NO, Verdict.CARE]
    assert disk.verdict is Verdict.NO
    assert worst([Verdict.CARE, Verdict.YES]) is Verdict.CARE
    assert worst([]) is Verdict.YES


@pytest.mark.parametrize(
    ("drivers", "compat", "format_", "bitmap"),
    [
        (("qcow2", "file"), "1.1", "qcow2 v3 on file", True),
        (("qcow2", "host_device"), "0.10", "qcow2 v2 on host_device", False),
        (("mirror_top", "throttle", "qcow2", "nbd"), "1.1", "qcow2 v3 on nbd", True),
        (("nbd",), None, "nbd", False),
        ((), None, "?", False),
    ],
)
def test_formats(drivers: tuple[str, ...], compat: str | None, format_: str, bitmap: bool) -> None:
    disk = judge_disk(replace(PLAIN, drivers=drivers, compat=compat), VM, STATE)
    assert disk.format == format_
    assert ("bitmap" in disk.after_qemu) is bitmap


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [
        ("vhost-user-blk-pci", Verdict.NO),
        ("vhost-user-scsi-pci", Verdict.NO),
        ("vhost-scsi-pci-non-transitional", Verdict.NO),
        ("vfio-pci-nohotplug", Verdict.CARE),
        ("usb-host", Verdict.CARE),
        ("vhost-user-fs-pci", Verdict.CARE),
        ("nvdimm", Verdict.CARE),
    ],
)
def test_what_qemu_does_not_see(kind: str, verdict: Verdict) -> None:
    _, found = judge(replace(VM, devices={"vd0": "virtio-blk-pci", "x": kind, "net": "virtio-net-pci"}), STATE)
    assert (found.device, found.verdict, found.size) == ("x", verdict, None)


def test_what_holds_nothing_to_capture() -> None:
    empty, full = Drive("", "cd0", True, None, False), Drive("", "/machine/peripheral/cd1/virtio-backend", False, "n", True)
    found = judge(replace(VM, left_out=(empty, full), devices={"cd0": "scsi-cd"}), STATE)[1:]
    assert [(disk.device, disk.verdict) for disk in found] == [("cd0", Verdict.LEFT_OUT), ("cd1", Verdict.LEFT_OUT)]
    assert "empty" in found[0].reasons[0].why
    assert "read-only" in found[1].reasons[0].why


def test_anothers_server_is_what_a_daemons_disks_are_used_by() -> None:
    taken = replace(VM, exports=(BlockExport("theirs", "nbd", "node0"), BlockExport("x", "vhost-user-blk", "node0")))
    assert judge(taken, STATE)[0].verdict is Verdict.CARE
    assert "(export theirs)" in judge(taken, STATE)[0].reasons[0].why
    assert judge_disk(replace(PLAIN, disk=replace(NODE, path="")), taken, STATE).verdict is Verdict.YES


@pytest.mark.parametrize(
    ("version", "verdict"), [((7, 1, 9), Verdict.CARE), ((7, 2, 0), Verdict.YES), ((10, 0, 0), Verdict.YES)]
)
def test_versions(version: tuple[int, int, int], verdict: Verdict) -> None:
    (check,) = judge_hypervisor(replace(VM, version=version))
    assert check.verdict is verdict


def test_commands_that_are_missing_and_what_a_killed_run_left() -> None:
    checks = judge_hypervisor(replace(VM, missing=("blockdev-mirror", "transaction"), ours=True))[1:]
    assert [check.verdict for check in checks] == [Verdict.NO, Verdict.CARE]
    assert "blockdev-mirror, transaction" in checks[0].words


def test_a_domain_as_a_whole() -> None:
    assert judge_domain(running=True, confined=[], barred=None) == []
    checks = judge_domain(running=False, confined=["apparmor"], barred=(64055, Path("/root")))
    assert [(check.name, check.verdict) for check in checks] == [
        ("sockets", Verdict.NO),
        ("state", Verdict.YES),
        ("apparmor", Verdict.CARE),
    ]
    assert "user 64055 and may not pass through /root" in checks[0].words


def test_a_disk_that_is_half_restored(tmp_path: Path) -> None:
    image = tmp_path / "a.raw"
    image.write_bytes(bytes(512))
    disk = replace(PLAIN, filename=str(image))
    assert judge_disk(disk, VM, tmp_path).verdict is Verdict.YES
    leave_mark(mark_path(str(image)), Mark("web1/vda@12:00", str(image), 512))
    (reason,) = judge_disk(disk, VM, tmp_path).reasons
    assert reason.verdict is Verdict.NO
    assert reason.why == f"{image} is a mixture of two moments: a restore of web1/vda@12:00 to it has not ended"
    assert f"restore web1/vda@12:00 --to {image} --in-place" in reason.do
    Path(mark_path(str(image))).write_text("not ours")
    (reason,) = judge_disk(disk, VM, tmp_path).reasons
    assert (reason.verdict, "is not the mark of a restore" in reason.why) == (Verdict.NO, True)
