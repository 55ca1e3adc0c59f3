# SPDX-License-Identifier: AGPL-3.0-or-later
"""File systems in image files, filled with real files.

`from_tree` needs no rights (mke2fs copies a folder into an image). `installed` mounts the image and copies file by file in a
given order, as an installation does, so that the kernel (or ntfs-3g) lays it out; that needs the right to mount.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from bench.files import RealFile, copy_files

FileSystem = Literal["ext4", "XFS", "NTFS"]

# mke2fs takes blocks of 1 KiB below 512 MB, which disks of VMs do not have: files would lie on other boundaries.
_MAKE_EXT4 = ("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096")

SLACK = {"ext4": 1.3, "XFS": 1.35, "NTFS": 1.3}
"""Size of the image by bytes of files: room for metadata and the ends of blocks."""


class CannotMount(Exception):
    """This process may not mount images, or a program is missing."""


def size_for(files: list[RealFile], file_system: FileSystem) -> int:
    """Bytes of an image that these files fit in, whole MiB."""
    size = int(sum(-(-file.size // 4096) * 4096 + 1024 for file in files) * SLACK[file_system])
    # XFS wants 300 MB at least; ext4 has a log of its own.
    return -(-max(size, (320 if file_system == "XFS" else 24) << 20) // (1 << 20)) << 20


def from_tree(image: Path, tree: Path, size: int, seed: str) -> None:
    """An ext4 image of `size` bytes with the files in `tree`. Raises CalledProcessError."""
    image.unlink(missing_ok=True)
    _truncate(image, size)
    fixed = str(uuid.uuid5(uuid.NAMESPACE_OID, seed))
    _call([*_MAKE_EXT4, "-U", fixed, "-E", f"hash_seed={fixed}", "-d", str(tree), str(image)])


def installed(image: Path, file_system: FileSystem, files: list[RealFile], seed: str) -> int:
    """A new file system, mounted, filled in the order of `files`; bytes of files. Raises CannotMount."""
    image.unlink(missing_ok=True)
    _truncate(image, size_for(files, file_system))
    fixed = str(uuid.uuid5(uuid.NAMESPACE_OID, seed))
    make = {
        "ext4": [*_MAKE_EXT4, "-U", fixed, "-E", f"hash_seed={fixed}"],
        "XFS": ["mkfs.xfs", "-q", "-m", f"uuid={fixed}"],
        "NTFS": ["mkntfs", "-q", "-F", "-f"],
    }[file_system]
    if shutil.which(make[0]) is None:
        raise CannotMount(f"{make[0]} is not installed")
    _call([*make, str(image)])
    folder = Path(tempfile.mkdtemp(prefix="mounted-", dir=image.parent))
    try:
        with _through_ntfs_3g(image, folder) if file_system == "NTFS" else _mounted(image, folder):
            return copy_files(files, folder)
    finally:
        folder.rmdir()


@contextmanager
def _mounted(image: Path, folder: Path) -> Iterator[None]:
    try:
        _call(["mount", "-o", "loop", str(image), str(folder)])
    except subprocess.CalledProcessError as error:
        raise CannotMount(f"images cannot be mounted here: {error.stderr.strip()}") from error
    try:
        yield
    finally:
        _call(["umount", str(folder)])


@contextmanager
def _through_ntfs_3g(image: Path, folder: Path) -> Iterator[None]:
    """In the foreground: a detached ntfs-3g goes on writing to the image after umount has returned."""
    if shutil.which("ntfs-3g") is None:
        raise CannotMount("ntfs-3g is not installed")
    command = ["ntfs-3g", "-o", "big_writes,no_detach", str(image), str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as driver:
        while not os.path.ismount(folder):
            if driver.poll() is not None:
                raise CannotMount(f"NTFS images cannot be mounted here: {driver.communicate()[1].strip()}")
            time.sleep(0.02)
        try:
            yield
        finally:
            _call(["umount", str(folder)])
            driver.communicate()


def _truncate(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def _call(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
