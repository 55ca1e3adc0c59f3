# SPDX-License-Identifier: AGPL-3.0-or-later
"""Images that other programs made (Hyper-V, Virtual PC, disk2vhd, VirtualBox, ESXi, QEMU), by their known content.

They are other projects' test data and not part of this repository: a folder beside it holds them, with their sums.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from everywhen.block.image import Image
from everywhen.block.image_errors import ImageDamaged, ImageError, ImageMissing, ImageUnsupported
from everywhen.block.open_image import open_image
from tests.foreign_images import listed_images, needs_images
from tests.long_forms import SOAK

STEP = 4 << 20

pytestmark = needs_images


def _chosen(*, known: bool) -> list[dict[str, Any]]:
    """Entries of disk images with a known content (raw ones: of the file), or those without."""
    chosen = []
    for entry in listed_images():
        folder = entry["path"].partition("/")[0]
        raw = folder == "raw" or entry["path"].endswith(".bin.gz")
        is_known = "raw_sha256" in entry or raw
        size = max(entry["size"], entry.get("virtual_size") or 0)
        heavy = size > 2 << 30 or (raw and size > 64 << 20)
        if folder not in ("config", "manifests") and is_known is known and (SOAK or not heavy or not known):
            chosen.append(entry)
    return chosen


def content_hash(disk: Image) -> str:
    """SHA-256 of the disk; what extents call zero is not read, so a wrong extent shows too."""
    total, zeroes, at = hashlib.sha256(), bytes(STEP), 0
    for extent in disk.extents():
        assert extent.start == at
        while at < extent.end:
            length = min(STEP, extent.end - at)
            total.update(zeroes[:length] if extent.zero else disk.read(at, length))
            at += length
    assert at == disk.size
    return total.hexdigest()


@pytest.mark.parametrize("entry", _chosen(known=True), ids=lambda entry: entry["path"])
def test_known_content(entry: dict[str, Any], images: Path) -> None:
    path = images / entry["path"]
    if path.read_bytes()[:8] == b"QFI\xfb\0\0\0\x01":
        with pytest.raises(ImageUnsupported, match="version 1"):
            open_image(str(path))
        return
    with open_image(str(path)) as disk:
        assert content_hash(disk) == entry.get("raw_sha256", entry["sha256"])
        if disk.format != "vmdk":  # the list has the file's size for a bare extent
            assert disk.size == (entry.get("virtual_size") or entry["size"])


@pytest.mark.parametrize("entry", _chosen(known=False), ids=lambda entry: entry["path"])
def test_unknown_content(entry: dict[str, Any], images: Path) -> None:
    """Damaged images and other formats are refused with a sentence; empty disks have one zero extent."""
    path = images / entry["path"]
    if entry.get("virtual_size"):
        with open_image(str(path)) as disk:
            assert disk.size == entry["virtual_size"]
            assert [(extent.length, extent.zero) for extent in disk.extents()] == [(disk.size, True)]
        return
    with pytest.raises(ImageError) as caught:
        open_image(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["vhd", "vhdx"])
def test_differencing_images_insist_on_their_parent(kind: str, images: Path, tmp_path: Path) -> None:
    child, parent = f"ntfs-differential.{kind}", f"ntfs-parent.{kind}"
    source = images / kind / "dfvfs"
    if not source.exists():
        pytest.skip("the list of images has changed")
    shutil.copy(source / child, tmp_path)
    with pytest.raises(ImageMissing, match="ntfs-parent"):
        open_image(str(tmp_path / child))
    shutil.copy(source / f"ntfs-fixed.{kind}", tmp_path / parent)
    with pytest.raises(ImageDamaged, match="another state"):
        open_image(str(tmp_path / child))
    shutil.copy(source / parent, tmp_path / parent.upper())
    (tmp_path / parent).unlink()
    with open_image(str(tmp_path / child)) as disk:  # Windows' names have no case
        assert len(disk.files) == 2
        assert all(disk.summary.identities)


def test_log_that_cannot_be_replayed_is_refused(images: Path, tmp_path: Path) -> None:
    source = images / "vhdx" / "discutils" / "vhdx-log-replay.vhdx"
    if not source.exists():
        pytest.skip("the list of images has changed")
    image = tmp_path / "image.vhdx"
    image.write_bytes(source.read_bytes().replace(b"loge", b"logE"))
    with pytest.raises(ImageDamaged, match="log"):
        open_image(str(image))
