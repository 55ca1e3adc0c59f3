# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is opened as what, what is refused, and that a refusal leaves nothing open."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from everywhen.block import qemu_locks
from everywhen.block.image_errors import ImageDamaged, ImageError, ImageMissing, ImageNotAllowed, ImageUnsupported
from everywhen.block.open_image import FORMATS, open_image


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_what_is_nothing_else_is_raw(tmp_path: Path) -> None:
    for name, content in (("disk.qcow2", b"boot" * 1000), ("empty.vhdx", b""), ("tiny", b"Q")):
        path = tmp_path / name
        path.write_bytes(content)
        with open_image(str(path)) as disk:
            assert disk.summary.chain == ("raw",)
            assert disk.size == len(content)
            assert disk.read(0, disk.size) == content
            assert sum(extent.length for extent in disk.extents()) == disk.size


def test_a_named_format_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"QFI\xfb" + bytes(2000))
    with open_image(str(path), format="raw") as disk:
        assert disk.read(0, 4) == b"QFI\xfb"
    with pytest.raises(ImageUnsupported, match="version 0"):
        open_image(str(path))
    with pytest.raises(ImageUnsupported, match="supported are"):
        open_image(str(path), format="floppy")


@pytest.mark.parametrize("form", [name for name in FORMATS if name != "raw"])
def test_another_format_than_said(form: str, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    with pytest.raises(ImageDamaged, match=str(path)):
        open_image(str(path), format=form)


def test_things_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(ImageMissing, match="none"):
        open_image(str(tmp_path / "none"))
    with pytest.raises(ImageError):
        open_image(str(tmp_path))
    with pytest.raises(ImageMissing):
        open_image("a\0b")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ImageUnsupported, match="neither a file"):
            open_image(str(tmp_path / "pipe"))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_a_file_that_may_not_be_opened_is_not_called_missing(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(512))
    opened = os.open

    def refuse(name: str, *rest: int) -> int:
        if name == str(path):
            raise OSError(number, os.strerror(number), name)
        return opened(name, *rest)

    monkeypatch.setattr(os, "open", refuse)
    for attempt in (lambda: open_image(str(path)), lambda: qemu_locks.look([str(path)])):
        with pytest.raises(ImageNotAllowed, match=f"{path} cannot be opened: {os.strerror(number)}"):
            attempt()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts files by /proc")
def test_refusals_leave_nothing_open(tmp_path: Path) -> None:
    """A descriptor whose first extent is there and whose second one is not."""
    (tmp_path / "one").write_bytes(bytes(512))
    path = tmp_path / "disk.vmdk"
    path.write_text('# Disk DescriptorFile\nRW 1 FLAT "one" 0\nRW 1 FLAT "two" 0\n')
    before = open_files()
    with pytest.raises(ImageMissing, match="two"):
        open_image(str(path))
    assert open_files() == before
    (tmp_path / "two").write_bytes(b"x" * 512)
    with open_image(str(path)) as disk:
        assert disk.read(500, 24) == bytes(12) + b"x" * 12
    assert open_files() == before


@pytest.mark.parametrize(
    ("name", "refused"),
    [("../secret", True), ("/etc/hostname", True), ("sub/../../secret", True), ("sub/inner", False), ("./sub/inner", False)],
)
def test_extents_stay_in_the_folder(name: str, refused: bool, tmp_path: Path) -> None:
    folder = tmp_path / "vm"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"s" * 512)
    (folder / "sub" / "inner").write_bytes(b"i" * 512)
    path = folder / "disk.vmdk"
    path.write_text(f'# Disk DescriptorFile\nRW 1 FLAT "{name}" 0\n')
    if refused:
        with pytest.raises(ImageError, match="outside"):
            open_image(str(path))
        return
    with open_image(str(path)) as disk:
        assert disk.read(0, 512) == b"i" * 512


def test_a_folder_with_a_similar_name_is_outside(tmp_path: Path) -> None:
    (tmp_path / "vm").mkdir()
    (tmp_path / "vm2").mkdir()
    (tmp_path / "vm2" / "disk").write_bytes(bytes(512))
    (tmp_path / "vm" / "disk.vmdk").write_text('# Disk DescriptorFile\nRW 1 FLAT "../vm2/disk" 0\n')
    with pytest.raises(ImageError, match="outside"):
        open_image(str(tmp_path / "vm" / "disk.vmdk"))
    with open_image(str(tmp_path / "vm" / "disk.vmdk"), allow_outside=True) as disk:
        assert disk.size == 512


def test_an_extent_that_is_the_descriptor_itself(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    path.write_text('# Disk DescriptorFile\nRW 1 FLAT "disk.vmdk" 0\n')
    with pytest.raises(ImageError, match="itself"):
        open_image(str(path))
