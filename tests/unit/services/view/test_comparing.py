# SPDX-License-Identifier: AGPL-3.0-or-later
"""When two files are taken to be the same without being read."""

from __future__ import annotations

import pytest

from everywhen.guest.tree import Kind, Times
from everywhen.guest.walking import Found
from everywhen.services.view.comparing import compare
from everywhen.services.view.files import Place
from tests.memory_tree import MemoryFileSystem

SECOND = 10**9
FAT, EXFAT = Times(modified=8 * SECOND), Times(modified=8 * SECOND + 10**7)
EXT = Times(modified=8 * SECOND, changed=9 * SECOND)


def place(times: Times, content: bytes) -> Place:
    system = MemoryFileSystem("fat32" if times is FAT else "ext4")
    system.add("/file", Kind.FILE, times=times, content=content)
    return Place(system, Found("/", system.root), "")


@pytest.mark.parametrize(("times", "seen"), [(FAT, True), (EXFAT, False), (EXT, False)])
def test_times_that_are_coarse_are_not_believed(times: Times, seen: bool) -> None:
    """Of the others it is said that they are not read."""
    before, after = place(times, b"old"), place(times, b"new")
    assert [one.path for one in compare(before, after, lambda _: None).found] == (["/file"] if seen else [])
    assert not compare(before, place(times, b"old"), lambda _: None).found
