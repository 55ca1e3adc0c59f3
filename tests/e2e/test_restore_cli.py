# SPDX-License-Identifier: AGPL-3.0-or-later
"""What restore promises: the same bytes in every format, nothing overwritten untold, nothing half left behind."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.program import BLOCK, PROGRAM, Program, await_, ended, freeze, qemu_img, same

FORMATS = {"raw": "raw", "qcow2": "qcow2", "vhd": "vpc", "vhd-fixed": "vpc", "vhdx": "vhdx", "vmdk": "vmdk"}
"""Ours, and QEMU's word for it."""


def make_image(path: Path, *, blocks: int = 400, seed: int = 1) -> Path:
    """Data in the first blocks, here and there, and at the end."""
    rng = random.Random(seed)
    path.write_bytes(rng.randbytes(5 * BLOCK))
    os.truncate(path, blocks * BLOCK)
    with path.open("r+b") as file:
        for at in (20, 21, 300, blocks - 1):
            file.seek(at * BLOCK)
            file.write(rng.randbytes(BLOCK))
    return path


@contextmanager
def loop_device(path: Path) -> Iterator[Path]:
    """A block device over a file; skips where that is not allowed."""
    made = subprocess.run(["losetup", "--find", "--show", str(path)], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop devices here: {made.stderr.strip()}")
    device = Path(made.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", str(device)], check=True)


def test_progress_ends_at_the_end(program: Program, tmp_path: Path) -> None:
    """Also where the disk's last block is a part of one."""
    image = tmp_path / "a.img"
    image.write_bytes(random.Random(1).randbytes(BLOCK + 512))
    program.backup("web1", f"vda={image}")
    done = program.run("restore", "web1/vda", "--to", tmp_path / "back.img", "--progress", "json", "-q")
    last = json.loads(done.err.splitlines()[-1])
    assert last["bytes_done"] == last["bytes_total"] == BLOCK + 512


def test_every_format_is_identical(program: Program, tmp_path: Path) -> None:
    image = make_image(tmp_path / "a.img")
    program.backup("web1", f"vda={image}")
    for name, qemu in FORMATS.items():
        target = tmp_path / f"back.{name}"
        found = program.restore("web1/vda", target, "--format", name, "--verify")
        assert found["verified"] is True
        same(image, target, formats=("raw", qemu))
        assert found["disks"]["vda"]["path"] == str(target)
        # And the way back in: nothing of it is new.
        assert program.backup("again", f"vda={target}")["disks"]["vda"]["bytes_stored"] == 0


def test_folders_files_and_standard_output(program: Program, tmp_path: Path) -> None:
    disks = {name: make_image(tmp_path / name, seed=number) for number, name in enumerate(("vda", "vdb"))}
    program.backup("web1", *(f"{name}={path}" for name, path in disks.items()))
    found = program.restore("web1", tmp_path / "new" / "folder")
    for name, path in disks.items():
        assert found["disks"][name]["path"] == str(tmp_path / "new" / "folder" / f"web1-{name}.raw")
        same(path, Path(found["disks"][name]["path"]))
    with (tmp_path / "piped").open("wb") as pipe:
        subprocess.run([PROGRAM, "restore", "web1/vdb", "--to", "-"], env=program.environment, stdout=pipe, check=True)
    same(disks["vdb"], tmp_path / "piped")
    for arguments, code, words in (
        (("web1", "--to", "-"), 2, "one disk"),
        (("web1/vda", "--to", "-", "--format", "qcow2"), 2, "raw only"),
        (("web1", "--to", str(disks["vda"])), 1, str(disks["vda"])),
        (("web1/vda", "--to", "none/such/a.img"), 1, "There is no folder"),
        (("web1/vda", "--to", "a.img", "--format", "vdi"), 2, "not a format"),
        (("web1/vda", "--to", "a.img", "--in-place"), 6, "does not exist"),
        (("web1/vda", "--to", "a.img", "--in-place", "--overwrite"), 2, "exclude"),
        (("web1/vdc", "--to", "a.img"), 6, "no disk vdc"),
    ):
        done = program.run("restore", *arguments, *([] if "-" in arguments else ["--json"]))
        assert done.code == code, done
        assert words in done.out + done.err
    assert not (tmp_path / "a.img").exists()


def test_the_reader_of_a_pipe_goes_away(program: Program, tmp_path: Path) -> None:
    program.backup("web1", f"vda={make_image(tmp_path / 'a.img', blocks=2000)}")
    command = [str(PROGRAM), "restore", "web1/vda", "--to", "-"]
    process = subprocess.Popen(command, env=program.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    said = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait() == 1
    assert "went away" in said
    assert f"of {2000 * BLOCK} bytes" in said  # how much of it got through


def test_nothing_is_overwritten_untold(program: Program, tmp_path: Path) -> None:
    image = make_image(tmp_path / "a.img")
    other = make_image(tmp_path / "b.img", seed=2)
    (tmp_path / "web1.conf").write_text("new")
    program.backup("web1", f"vda={image}", f"vdb={other}", "--config", tmp_path / "web1.conf")
    for there in ("web1-vdb.raw", "web1.conf", "web1-vda.raw.everywhen-partial"):
        folder = tmp_path / f"to-{there}"
        folder.mkdir()
        (folder / there).write_bytes(b"mine")
        done = program.run("restore", "web1", "--to", folder, "--json")
        assert done.code == 1, done
        assert "Nothing was written" in done.error["what"] + done.error["safe"]
        # Learned before the first disk was written, and nothing else is there now.
        assert [path.name for path in folder.iterdir()] == [there]
        assert (folder / there).read_bytes() == b"mine"
        found = program.restore("web1", folder, "--overwrite")
        same(image, Path(found["disks"]["vda"]["path"]))
        same(other, Path(found["disks"]["vdb"]["path"]))
        assert (folder / "web1.conf").read_text() == "new"
        assert len(list(folder.iterdir())) == 3


def test_a_file_of_the_configuration_named_like_a_disk(program: Program, tmp_path: Path) -> None:
    image = make_image(tmp_path / "a.img")
    (tmp_path / "web1-vda.raw").write_text("not a disk")
    program.backup("web1", f"vda={image}", "--config", tmp_path / "web1-vda.raw")
    (tmp_path / "out").mkdir()
    done = program.run("restore", "web1", "--to", "out", "--overwrite", "--json")
    assert (done.code, list((tmp_path / "out").iterdir())) == (1, [])
    assert "web1-vda.raw" in done.error["what"]
    program.restore("web1/vda", tmp_path / "out")


def test_an_image_in_use_is_not_replaced(program: Program, tmp_path: Path) -> None:
    image = make_image(tmp_path / "a.img")
    program.backup("web1", f"vda={image}")
    with subprocess.Popen(
        ["qemu-io", "-f", "raw", str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as qemu:
        assert qemu.stdin is not None
        assert qemu.stdout is not None
        print("read 0 512", file=qemu.stdin, flush=True)
        while "read 512/512" not in qemu.stdout.readline():
            pass
        for mode in ("--overwrite", "--in-place"):
            done = program.run("restore", "web1/vda", "--to", image, mode, "--json")
            assert done.code == 4, done
            assert str(image) in done.error["what"]
        assert program.run("backup", "web1", f"vda={image}").code == 4
        qemu.stdin.close()
    program.restore("web1/vda", image, "--overwrite")


def test_in_place_writes_what_differs(program: Program, tmp_path: Path) -> None:
    image = make_image(tmp_path / "a.img")
    program.backup("web1", f"vda={image}")
    want = image.read_bytes()
    with image.open("r+b") as file:
        for at in (3 * BLOCK, 21 * BLOCK + 5000, 100 * BLOCK, 399 * BLOCK):
            file.seek(at)
            file.write(b"guest wrote this")
    found = program.restore("web1/vda", image, "--in-place")
    assert image.read_bytes() == want
    assert found["disks"]["vda"]["bytes_written"] == 4 * 4096
    assert program.restore("web1/vda", image, "--in-place")["disks"]["vda"]["bytes_written"] == 0
    qemu_img("convert", "-O", "qcow2", image, tmp_path / "a.qcow2")
    done = program.run("restore", "web1/vda", "--to", "a.qcow2", "--in-place", "--json")
    assert (done.code, "qcow2 image" in done.error["what"]) == (1, True)
    (tmp_path / "short").write_bytes(b"x")
    done = program.run("restore", "web1/vda", "--to", "short", "--in-place", "--json")
    assert (done.code, "Nothing was written" in done.error["what"]) == (1, True)


def test_what_would_be_written_in_place_is_said_and_not_written(program: Program, tmp_path: Path) -> None:
    image = make_image(tmp_path / "a.img")
    program.backup("web1", f"vda={image}")
    for at, content in ((BLOCK, b"guest"), (100 * BLOCK, b"new")):  # in data, and where there was a hole
        with image.open("r+b") as file:
            file.seek(at)
            file.write(content)
    before = image.read_bytes()
    found = program.restore("web1/vda", image, "--in-place", "--dry-run")
    would = found["disks"]["vda"]["bytes_written"]
    assert (found["dry_run"], image.read_bytes() == before) == (True, True)
    assert (
        "would be written. Nothing was done (--dry-run)"
        in program.run("restore", "web1", "--to", image, "--in-place", "--dry-run").out
    )
    assert sorted(path.name for path in tmp_path.glob("a.img*")) == ["a.img"], "no mark"
    assert program.restore("web1/vda", image, "--in-place", "--verify")["disks"]["vda"]["bytes_written"] == would > 0
    assert program.restore("web1/vda", image, "--in-place", "--dry-run")["disks"]["vda"]["bytes_written"] == 0
    for wrong in (("--dry-run",), ("--overwrite", "--dry-run"), ("--in-place", "--dry-run", "--verify")):
        assert program.run("restore", "web1/vda", "--to", image, *wrong).code == 2
    assert program.run("restore", "web1/vda", "--to", "-", "--verify").code == 2
    assert program.run("restore", "web1/vda", "--to", tmp_path / "none", "--in-place", "--dry-run").code == 6


def test_in_place_goes_on_after_a_kill(program: Program, tmp_path: Path) -> None:
    image = tmp_path / "a.img"
    image.write_bytes(random.Random(7).randbytes(64 << 20))
    program.backup("web1", f"vda={image}")
    target = tmp_path / "target.img"
    target.write_bytes(bytes(64 << 20))
    mark = tmp_path / "target.img.everywhen-restoring"
    process = program.start("restore", "web1/vda", "--to", target, "--in-place")
    freeze(process, mark.exists)
    process.kill()
    ended(process)
    assert "web1/vda@p-" in mark.read_text()
    done = program.run("restore", "web1/vda", "--to", target, "--in-place")
    assert done.code == 0, done
    assert "going on from an unfinished restore" in done.out
    assert not mark.exists()
    same(image, target)
    # Interrupted instead of killed: it says that the disk must not be used.
    target.write_bytes(bytes(64 << 20))
    process = program.start("restore", "web1/vda", "--to", target, "--in-place", "--json")
    freeze(process, mark.exists)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    stopped = ended(process)
    assert stopped.code == 130, stopped
    assert "partly restored: do not use it" in stopped.error["safe"]
    assert mark.exists()
    # Nor is it taken for a moment of its own.
    refused = program.run("backup", "web1", f"vda={target}", "--json")
    assert (refused.code, "mixture of two moments: a restore of web1/vda@p-" in refused.error["what"]) == (4, True), refused
    live = program.run("backup", "web1", f"vda={target}", "--live", "--json")
    assert (live.code, live.document["consistency"]) == (0, "none")
    assert "a restore of web1/vda@p-" in live.document["why"]
    # All of it written anew ends that.
    program.restore("web1/vda", target, "--overwrite")
    assert not mark.exists()
    assert program.backup("web1", f"vda={target}")["consistency"] == "crash"


def test_a_half_restored_device_is_known_without_the_cache(program: Program, tmp_path: Path) -> None:
    image = tmp_path / "a.img"
    image.write_bytes(random.Random(7).randbytes(32 << 20))
    program.backup("web1", f"vda={image}")
    backing = tmp_path / "disk"
    backing.write_bytes(bytes(32 << 20))
    with loop_device(backing) as device:
        marks = tmp_path / "host" / "_restoring"
        process = program.start("restore", "web1/vda", "--to", device, "--in-place")
        freeze(process, lambda: any(marks.glob("*.everywhen-restoring")))
        process.kill()
        ended(process)
        shutil.rmtree(tmp_path / "cache")
        refused = program.run("backup", "web1", f"vda={device}", "--json")
        assert (refused.code, f"{device} is a mixture of two moments" in refused.error["what"]) == (4, True), refused
        (need,) = program.run("status", "--json").document["needs"]
        assert f"{device} is half restored" in need
        assert program.run("status", "--check").code == 5
        done = program.run("restore", "web1/vda", "--to", device, "--in-place")
        assert "going on from an unfinished restore" in done.out
        assert program.run("status", "--check").code == 0
        assert program.backup("web1", f"vda={device}")["consistency"] == "crash"


def test_block_devices(program: Program, tmp_path: Path) -> None:
    image = make_image(tmp_path / "a.img")
    program.backup("web1", f"vda={image}")
    backing = tmp_path / "disk"
    backing.touch()
    os.truncate(backing, 402 * BLOCK)
    with loop_device(backing) as device:
        refused = program.run("restore", "web1/vda", "--to", device, "--json")
        assert (refused.code, str(device) in refused.error["what"]) == (1, True)
        program.restore("web1/vda", device, "--overwrite")
        assert backing.read_bytes()[: 400 * BLOCK] == image.read_bytes()
        with device.open("r+b") as file:
            file.write(b"x")
        assert program.restore("web1/vda", device, "--in-place")["disks"]["vda"]["bytes_written"] == 4096
        assert program.run("restore", "web1/vda", "--to", device, "--overwrite", "--format", "vhdx").code == 2
        found = program.backup("web1", f"vda={device}")
        assert found["disks"]["vda"]["size"] == 402 * BLOCK
        assert program.run("restore", "web1/vda@latest", "--to", device, "--in-place").code == 0
    backing.write_bytes(b"")
    os.truncate(backing, 400 * BLOCK - 512)
    with loop_device(backing) as device:
        small = program.run("restore", "web1/vda", "--to", device, "--overwrite", "--json")
        assert (small.code, "Nothing was written" in small.error["what"]) == (1, True)


def test_a_mounted_device_is_refused(program: Program, tmp_path: Path) -> None:
    program.backup("web1", f"vda={make_image(tmp_path / 'a.img')}")
    backing, mountpoint = tmp_path / "disk", tmp_path / "mnt"
    backing.touch()
    os.truncate(backing, 400 * BLOCK)
    subprocess.run(["mkfs.ext4", "-q", str(backing)], check=True)
    mountpoint.mkdir()
    with loop_device(backing) as device:
        prefix = ("unshare", "-m", "sh", "-c", f'mount {device} {mountpoint} && exec "$@"', "sh")
        if program.run("--version", prefix=prefix).code:
            pytest.skip("mounting is not allowed here")
        for mode in ("--overwrite", "--in-place"):
            done = program.run("restore", "web1/vda", "--to", device, mode, "--json", prefix=prefix)
            assert done.code == 4, done
            assert f"mounted on {mountpoint}" in done.error["what"]
        refused = program.run("backup", "web2", f"vda={device}", "--json", prefix=prefix)
        assert (refused.code, f"mounted on {mountpoint}" in refused.error["what"]) == (4, True)
        live = program.run("backup", "web2", f"vda={device}", "--live", "--json", prefix=prefix)
        assert (live.code, live.document["consistency"]) == (0, "none")
        assert program.backup("web2", f"vda={device}")["consistency"] == "crash"


def test_limits_and_paddings_of_formats_are_said(program: Program, tmp_path: Path) -> None:
    odd, huge = tmp_path / "odd.img", tmp_path / "huge.img"
    odd.write_bytes(random.Random(8).randbytes(BLOCK + 100))
    huge.touch()
    os.truncate(huge, 3 << 40)
    program.backup("odd", f"vda={odd}", f"vdb={huge}")
    done = program.run("restore", "odd/vda", "--to", "odd.qcow2", "--format", "qcow2")
    assert done.code == 0
    assert "412 bytes of zeroes after the disk's end" in done.err
    assert qemu_img("convert", "-O", "raw", tmp_path / "odd.qcow2", tmp_path / "odd.raw") == ""
    assert (tmp_path / "odd.raw").read_bytes() == odd.read_bytes() + bytes(412)
    program.restore("odd/vda", tmp_path / "back.img")
    assert (tmp_path / "back.img").read_bytes() == odd.read_bytes()
    large = program.run("restore", "odd/vdb", "--to", "huge.vhd", "--format", "vhd", "--json")
    assert large.code == 1
    assert "cannot be written as vhd" in large.error["what"]
    assert "--format" in large.error["do"][0]
    assert not list(tmp_path.glob("huge.vhd*"))


def test_interrupted_restores_leave_no_file(program: Program, tmp_path: Path) -> None:
    image = tmp_path / "a.img"
    image.write_bytes(random.Random(9).randbytes(64 << 20))
    program.backup("web1", f"vda={image}")
    partial = tmp_path / "back.img.everywhen-partial"
    process = program.start("restore", "web1/vda", "--to", "back.img", "--json")
    freeze(process, partial.exists)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    done = ended(process)
    assert done.code == 130, done
    assert done.error["code"] == "interrupted"
    assert not list(tmp_path.glob("back.img*"))
    assert not list(program.repo.glob("leases/*"))
    # Killed: the partial file stays, is never taken for the disk, and goes with the next one that may overwrite.
    process = program.start("restore", "web1/vda", "--to", "back.img")
    await_(process, partial.exists)
    process.kill()
    ended(process)
    assert not (tmp_path / "back.img").exists()
    assert program.run("restore", "web1/vda", "--to", "back.img").code == 1
    program.restore("web1/vda", tmp_path / "back.img", "--overwrite")
    same(image, tmp_path / "back.img")
    assert not partial.exists()


def test_one_disk_with_its_configuration(program: Program, tmp_path: Path) -> None:
    image = make_image(tmp_path / "a.img")
    (tmp_path / "web1.conf").write_text("conf")
    program.backup("web1", f"vda={image}", "--config", tmp_path / "web1.conf")
    told = program.run("restore", "web1", "--to", "one.img")
    assert (told.code, "left out: web1.conf" in told.err) == (0, True), told
    assert "left out" not in program.run("restore", "web1/vda", "--to", "another.img").err
    # A name that ends as a folder's does is one, whether it is there already or not.
    found = program.ok("restore", "web1", "--to", "new/")
    assert found["files"] == ["new/web1.conf"]
    assert (tmp_path / "new" / "web1.conf").read_text() == "conf"
    program.ok("restore", "web1/vda", "--to", "newer/")
    same(image, tmp_path / "newer" / "web1-vda.raw")
