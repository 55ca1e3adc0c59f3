# SPDX-License-Identifier: AGPL-3.0-or-later
"""Room set aside in a file system store."""

from __future__ import annotations

from pathlib import Path

import pytest

from everywhen.storage.base import OutOfSpace
from everywhen.storage.posix import PosixStore


def test_the_room_is_really_taken(tmp_path: Path) -> None:
    store = PosixStore(tmp_path)
    store.preallocate("reserve/room", 8 << 20)
    assert store.size("reserve/room") == 8 << 20
    assert (tmp_path / "reserve/room").stat().st_blocks * 512 >= 8 << 20


def test_more_room_than_there_is_leaves_nothing_behind(tmp_path: Path) -> None:
    store = PosixStore(tmp_path)
    with pytest.raises(OutOfSpace):
        store.preallocate("reserve/room", store.space().total * 2)
    assert list(store.list()) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
