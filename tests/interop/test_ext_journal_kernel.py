# SPDX-License-Identifier: AGPL-3.0-or-later
"""Journals as the kernel leaves them when the power fails: ours against e2fsck, block for block, and what was synced."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ext_journals import by_e2fsck, differences, made, replayed, tool, whole

CRASH = """
import fcntl, os, random, shutil, struct, subprocess, sys
image, folder, options, cut = sys.argv[1:]
subprocess.run(["mount", "-t", "ext4", "-o", "loop,commit=300" + options, image, folder], check=True)
chance = random.Random(8)

def write(name, content, sync=True):
    with open(os.path.join(folder, name), "wb") as file:
        file.write(content)
        if sync:
            file.flush()
            os.fsync(file.fileno())

for turn in range(12):
    os.mkdir(f"{folder}/d{turn}")
    for number in range(60):
        write(f"d{turn}/{'n' * 40}{number}", bytes([turn]) * chance.randrange(3000), sync=number % 20 == 0)
    if turn % 3 == 2:  # blocks of folders become those of files: they must be revoked
        subprocess.run(["rm", "-r", f"{folder}/d{turn - 1}"], check=True)
    write(f"big{turn}", struct.pack(">III", 0xC03B3998, 1, turn) + chance.randbytes(100_000))
write("kept", b"the last that was synced")
write("lost", b"never synced", sync=False)
top = os.open(folder, os.O_RDONLY)
fcntl.ioctl(top, 0x8004587D, struct.pack("I", 2))  # FS_IOC_SHUTDOWN, without the log
os.close(top)
shutil.copyfile(image, cut)  # an unmount would write what only the log has, even now
subprocess.run(["umount", folder], check=True)
"""


def crashed(image: Path, options: str) -> Path:
    """The file system is mounted, used, and cut off: how it is then."""
    folder, cut = image.with_suffix(".mounted"), image.with_suffix(".cut")
    folder.mkdir()
    command = ["unshare", "--mount", sys.executable, "-c", CRASH, str(image), str(folder), options, str(cut)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and "CalledProcessError: Command '['mount'" in done.stderr:
        pytest.skip(f"no ext4 here that can be mounted: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    return cut


KINDS = {
    "ext4": ("-t ext4 -b 4096 -J size=4", ""),
    "ext4-1k": ("-t ext4 -b 1024 -J size=1", ""),
    "no checksums": ("-t ext4 -b 4096 -O ^metadata_csum,^64bit -J size=4", ""),
    "sums of transactions": ("-t ext4 -b 4096 -O ^metadata_csum,^64bit -J size=4", ",journal_checksum"),
    "asynchronous": ("-t ext4 -b 4096 -J size=4", ",journal_async_commit,data=writeback"),
    "data too": ("-t ext4 -b 4096 -J size=4", ",data=journal"),
    "ext3": ("-t ext3 -b 1024 -J size=1", ",data=journal"),
}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("kind", KINDS)
def test_the_journal_of_a_guest_that_was_cut_off_is_replayed_as_e2fsck_does(tmp_path: Path, kind: str) -> None:
    making, mounting = KINDS[kind]
    image = crashed(made(tmp_path / "image", *making.split(), size="24M"), mounting)
    ours = replayed(image)
    assert ours.notes == ()
    assert ours.transactions > 3
    content = whole(ours)
    assert differences(content, by_e2fsck(image)) == []
    (tmp_path / "replayed").write_bytes(content)
    assert "the last that was synced" not in tool("debugfs", "-R", "cat kept", image)
    assert "the last that was synced" in tool("debugfs", "-R", "cat kept", tmp_path / "replayed")
    assert "needs_recovery" not in tool("dumpe2fs", "-h", tmp_path / "replayed")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
def test_fast_commits_that_are_not_shown_are_said(tmp_path: Path) -> None:
    making = "-t ext4 -b 4096 -O fast_commit -J size=8"
    ours = replayed(crashed(made(tmp_path / "image", *making.split(), size="24M"), ""))
    assert len(ours.notes) == 1
    assert "fast commits" in ours.notes[0]
