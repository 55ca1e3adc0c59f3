# SPDX-License-Identifier: AGPL-3.0-or-later
"""How much there is to be copied is counted while it is copied; at the end all of it is passed."""

from __future__ import annotations

from pathlib import Path

from everywhen.guest.errors import GuestDamaged
from everywhen.guest.tree import Entry, Kind
from everywhen.guest.walking import Found
from everywhen.services.view.copying import Copied, Copying
from everywhen.services.view.measuring import Measuring, weight
from everywhen.services.view.target_folder import TargetFolder
from tests.memory_tree import MemoryFileSystem, Node


def test_holes_weigh_nothing_where_they_are_known() -> None:
    sparse = Entry(name="x", kind=Kind.FILE, number=1, size=1 << 40, allocated=4096)
    packed = Entry(name="x", kind=Kind.FILE, number=1, size=100, allocated=4096)
    unknown = Entry(name="x", kind=Kind.FILE, number=1, size=70)
    assert [weight(one) for one in (sparse, packed, unknown)] == [4096, 100, 70]


def test_a_copy_passes_what_was_measured(tmp_path: Path) -> None:
    """Also where some of it cannot be read."""
    system = MemoryFileSystem()
    for number in range(300):
        system.add(f"/file {number}", Kind.FILE, content=b"x" * number)
    system.add("/broken", Kind.FILE, content=b"y" * 50).error = GuestDamaged("broken")
    system.put("/", "unreadable", GuestDamaged("no inode"))
    measuring = Measuring(system, Found("/", system.root))
    target = TargetFolder.at(str(tmp_path), overwrite=False)
    told: list[tuple[int, int | None]] = []

    def report(done: Copied) -> None:
        told.append((done.passed, measuring.total()))

    try:
        Copying(system, target, report, umask=0).copy_content(system.root, made=False)
    finally:
        target.close()
    assert told == sorted(told, key=lambda one: one[0])
    assert [total for _, total in told[:1]] == [None], "it does not wait until all is counted"
    assert told[-1] == (sum(range(300)) + 50,) * 2


def test_one_file_is_measured_at_once() -> None:
    system = MemoryFileSystem()
    node: Node = system.add("/file", Kind.FILE, content=b"x" * 9)
    assert Measuring(system, Found("/file", node.entry)).total() == 9
