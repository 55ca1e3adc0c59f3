# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is mounted where, as Linux tells it."""

from __future__ import annotations

from everywhen.interfaces.fuse.mount_point import Mounted, mounted_on

MOUNTINFO = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
41 22 0:40 / /mnt/of\040mine ro,nosuid,nodev,relatime shared:7 - fuse.everywhen everywhen ro,user_id=0,group_id=0
42 22 0:41 / /mnt/two rw,relatime - ext4 /dev/loop0 rw
43 42 0:42 / /mnt/two rw,relatime - fuse.sshfs somebody:/ rw
44 22 0:43 / /mnt/b\134üro rw,relatime shared:9 master:2 - tmpfs none rw
"""


def test_the_one_on_top_counts() -> None:
    assert mounted_on("/", MOUNTINFO) == Mounted("ext4", "/dev/sda1")
    assert mounted_on("/mnt/two", MOUNTINFO) == Mounted("fuse.sshfs", "somebody:/")
    assert mounted_on("/mnt", MOUNTINFO) is None


def test_ours_are_told_from_others() -> None:
    mine = mounted_on("/mnt/of mine", MOUNTINFO)
    assert mine is not None
    assert mine.ours
    assert not Mounted("fuse.sshfs", "everywhen").ours
    assert not Mounted("fuse.everywhen", "somebody:/").ours


def test_names_with_what_is_escaped() -> None:
    assert mounted_on("/mnt/b\\\u00fcro", MOUNTINFO) == Mounted("tmpfs", "none")
