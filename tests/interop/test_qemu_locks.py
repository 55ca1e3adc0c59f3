# SPDX-License-Identifier: AGPL-3.0-or-later
"""QEMU's image locks, with QEMU's own programs on the other side."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from everywhen.block import qemu_locks
from everywhen.block.image_errors import ImageInUse, ImageMissing

pytestmark = [
    pytest.mark.skipif(not shutil.which("qemu-io"), reason="qemu-io is not installed"),
    pytest.mark.skipif(not qemu_locks.SUPPORTED, reason="this system has no OFD locks"),
]


@pytest.fixture(params=["raw", "qcow2"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"disk.{request.param}"
    subprocess.run(["qemu-img", "create", "-f", request.param, str(path), "1M"], check=True, capture_output=True)
    return path


@contextmanager
def opened_by_qemu(image: Path, *options: str) -> Iterator[None]:
    """qemu-io has the image open; its prompt comes after that."""
    command = ["qemu-io", "-f", image.suffix[1:], *options, str(image)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"length\n")
        process.stdin.flush()
        seen = b""
        while b"MiB" not in seen and (byte := process.stdout.read(1)):
            seen += byte
        assert b"1 MiB" in seen, seen
        yield
        process.stdin.close()


def qemu_may(image: Path, *options: str) -> bool:
    """Whether QEMU opens the image now."""
    command = ["qemu-io", "-f", image.suffix[1:], *options, "-c", "length", str(image)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert run.returncode == 0 or "lock" in run.stdout + run.stderr, run.stdout + run.stderr
    return run.returncode == 0


def test_a_running_writer_is_seen(image: Path) -> None:
    with opened_by_qemu(image):
        with pytest.raises(ImageInUse, match="running virtual machine"), qemu_locks.reading([str(image)]):
            pass
        with pytest.raises(ImageInUse), qemu_locks.writing(str(image)):
            pass
    with qemu_locks.writing(str(image)):
        pass


def test_a_running_reader_is_no_writer(image: Path) -> None:
    with opened_by_qemu(image, "-r"):
        with qemu_locks.reading([str(image)]):
            pass
        with pytest.raises(ImageInUse), qemu_locks.writing(str(image)):
            pass


def test_a_look_sees_a_writer_and_keeps_nobody_out(image: Path) -> None:
    with opened_by_qemu(image), pytest.raises(ImageInUse, match="running virtual machine"):
        qemu_locks.look([str(image)])
    with opened_by_qemu(image, "-r"):
        qemu_locks.look([str(image)])
    with qemu_locks.writing(str(image)), pytest.raises(ImageInUse):
        qemu_locks.look([str(image)])
    qemu_locks.look([str(image)])


def test_qemu_refuses_what_is_being_written(image: Path) -> None:
    with qemu_locks.writing(str(image)):
        assert not qemu_may(image)
        assert not qemu_may(image, "-r")
    assert qemu_may(image)


def test_qemu_does_not_write_what_is_being_read(image: Path) -> None:
    with qemu_locks.reading([str(image)]):
        assert not qemu_may(image)
        assert qemu_may(image, "-r")
        with qemu_locks.reading([str(image)]):  # readers go together
            pass
        with pytest.raises(ImageInUse), qemu_locks.writing(str(image)):
            pass
    assert qemu_may(image)


def test_the_backing_file_of_a_running_machine_may_be_read(tmp_path: Path) -> None:
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    subprocess.run(["qemu-img", "create", "-f", "qcow2", str(base), "1M"], check=True, capture_output=True)
    subprocess.run(
        ["qemu-img", "create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", str(top)], check=True, capture_output=True
    )
    with opened_by_qemu(top):
        with qemu_locks.reading([str(base)]):
            pass
        with pytest.raises(ImageInUse), qemu_locks.writing(str(base)):
            pass
        with pytest.raises(ImageInUse), qemu_locks.reading([str(base), str(top)]):
            pass


def test_storage_daemon_and_nbd_server(image: Path, tmp_path: Path) -> None:
    for command in (
        [
            "qemu-nbd",
            "-f",
            image.suffix[1:],
            "--persistent",
            "--socket",
            str(tmp_path / "nbd"),
            "--pid-file",
            str(tmp_path / "pid"),
            str(image),
        ],
        [
            "qemu-storage-daemon",
            "--blockdev",
            f"driver=file,node-name=f,filename={image}",
            "--blockdev",
            f"driver={image.suffix[1:]},node-name=d,file=f",
            "--nbd-server",
            f"addr.type=unix,addr.path={tmp_path}/qsd",
            "--export",
            "nbd,id=e,node-name=d,writable=on",
            "--pidfile",
            str(tmp_path / "pid"),
        ],
    ):
        if not shutil.which(command[0]):
            continue
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                wait_for(tmp_path / "pid", process)
                with pytest.raises(ImageInUse), qemu_locks.reading([str(image)]):
                    pass
            finally:
                process.terminate()
        (tmp_path / "pid").unlink(missing_ok=True)
        with qemu_locks.reading([str(image)]):
            pass


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the daemon has written `path`, which it does when it is ready, or has ended."""
    while not path.exists():
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(process.stderr.read() if process.stderr else "")


def test_who_forbids_reading_is_respected(tmp_path: Path) -> None:
    """Byte 200 alone: somebody uses nothing, and lets nobody read."""
    import fcntl

    path = tmp_path / "disk"
    path.write_bytes(bytes(512))
    with path.open("rb") as file:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("@hhqqi4x", fcntl.F_RDLCK, 0, 200, 1, 0))
        with pytest.raises(ImageInUse), qemu_locks.reading([str(path)]):
            pass
    with qemu_locks.reading([str(path)]):
        pass


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ImageMissing), qemu_locks.reading([str(tmp_path / "none")]):
        pass
