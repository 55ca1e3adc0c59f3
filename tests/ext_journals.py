# SPDX-License-Identifier: AGPL-3.0-or-later
"""ext volumes whose journal must be replayed, written by debugfs, and what e2fsck makes of them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from everywhen.guest.ext_journal import Replay, replay

E2FSCK_WRITES = {
    "s_wtime": range(0x30, 0x34),
    "s_kbytes_written": range(0x178, 0x180),
    "s_checksum": range(0x3FC, 0x400),
}
"""Fields of the superblock that e2fsck changes besides: when, how much it wrote, the sum of it all. No reader needs them."""


class FileVolume:
    """A volume that is a file, in memory."""

    def __init__(self, content: bytes | bytearray) -> None:
        self.content = content
        self.size = len(content)
        self.bytes_read = 0

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"{offset} + {length} is outside of {self.size} bytes")
        self.bytes_read += length
        return bytes(self.content[offset : offset + length])


def tool(*command: str | Path, codes: Sequence[int] = (0,)) -> str:
    """Run a program of e2fsprogs; what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in codes, (command, done.stdout, done.stderr)
    return done.stdout + done.stderr


def made(image: Path, *options: str, size: str = "16M") -> Path:
    """A new file system."""
    tool("mke2fs", "-q", "-F", *options, image, size)
    return image


def written(image: Path, *commands: str) -> Path:
    """debugfs's commands on it, in one run."""
    script = image.with_suffix(".debugfs")
    script.write_text("".join(f"{command}\n" for command in commands))
    tool("debugfs", "-w", "-f", script, image)
    return image


def replayed(image: Path) -> Replay:
    """Our replay; there is something to replay."""
    found = replay(FileVolume(image.read_bytes()))
    assert found is not None
    return found


def whole(found: Replay) -> bytes:
    return found.volume.read(0, found.volume.size)


def by_e2fsck(image: Path) -> bytes:
    """What e2fsck makes of a copy; it has nothing to do but to replay the journal."""
    said, content = mended(image)
    assert "orphan" not in said, said
    return content


def mended(image: Path) -> tuple[str, bytes]:
    """What e2fsck says, and makes of a copy: it also clears files that were deleted while they were open."""
    copy = image.with_suffix(".e2fsck")
    shutil.copyfile(image, copy)
    said = tool("e2fsck", "-E", "journal_only", "-y", copy, codes=(0, 1))
    content = copy.read_bytes()
    copy.unlink()
    return said, content


def differences(ours: bytes, theirs: bytes) -> list[int]:
    """Bytes that differ, without the fields that e2fsck changes besides."""
    assert len(ours) == len(theirs)
    besides = {1024 + at for field in E2FSCK_WRITES.values() for at in field}
    different = [at for at in range(0, len(ours), 1024) if ours[at : at + 1024] != theirs[at : at + 1024]]
    return [at for start in different for at in range(start, start + 1024) if ours[at] != theirs[at] and at not in besides]
