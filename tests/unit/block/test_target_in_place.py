# SPDX-License-Identifier: AGPL-3.0-or-later
"""Restores in place: only what differs, a mark while it is unfinished, nothing that is not raw."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everywhen.block.target import TargetUnsuitable
from everywhen.block.target_in_place import InPlace
from everywhen.block.target_mark import MARK_SUFFIX, Mark, leave_mark, read_mark

SIZE = (2 << 20) + 777
OLD = random.Random(1).randbytes(SIZE)
SOURCE = "web1/vda@p-1"


def changed(*places: int) -> bytes:
    new = bytearray(OLD)
    for place in places:
        new[place] ^= 0xFF
    return bytes(new)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(OLD)
    return path


def restore(path: Path, new: bytes, piece: int = 1 << 20) -> int:
    with InPlace(str(path), len(new), SOURCE) as target:
        for start in range(0, len(new), piece):
            target.write(start, new[start : start + piece])
        target.finish()
        return target.bytes_written


def test_only_differing_pages_are_written(disk: Path) -> None:
    new = changed(0, 100, 4096 * 9 + 5, SIZE - 1)
    assert restore(disk, new) == 4096 * 2 + 777
    assert disk.read_bytes() == new
    assert os.listdir(disk.parent) == ["disk.raw"]


def test_nothing_differs_nothing_is_written(disk: Path) -> None:
    before = disk.stat().st_mtime_ns
    assert restore(disk, OLD) == 0
    assert disk.stat().st_mtime_ns == before
    assert os.listdir(disk.parent) == ["disk.raw"]


def test_the_mark_is_there_before_the_first_byte_changes(disk: Path) -> None:
    mark = Path(str(disk) + MARK_SUFFIX)

    def interrupted() -> None:
        with InPlace(str(disk), SIZE, SOURCE) as target:
            target.write(0, OLD[:4096])
            assert not mark.exists()
            inner = target._target.write

            def write(offset: int, data: memoryview) -> None:
                assert read_mark(str(mark)) == Mark(SOURCE, str(disk), SIZE)
                inner(offset, data)

            target._target.write = write  # type: ignore[method-assign, assignment]
            target.write(4096, changed(5000)[4096:8192])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        interrupted()
    assert caught.value.__notes__ == [
        f"{disk} is partly restored: do not use it. Go on with the same restore --in-place ({mark})."
    ]
    with InPlace(str(disk), SIZE, SOURCE) as target:
        assert target.unfinished == Mark(SOURCE, str(disk), SIZE)
        target.write(0, OLD)
        target.finish()
        assert target.bytes_written == 4096
    assert disk.read_bytes() == OLD
    assert not mark.exists()


def test_an_unfinished_one_that_was_right_already_loses_its_mark(disk: Path) -> None:
    mark = str(disk) + MARK_SUFFIX
    leave_mark(mark, Mark("other", str(disk), SIZE))
    assert restore(disk, OLD) == 0
    assert read_mark(mark) is None


def test_zeroes_are_punched_where_there_is_data(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    size = 64 << 20
    with disk.open("wb") as file:
        file.truncate(size)
        file.seek(32 << 20)
        file.write(b"x" * (4 << 20))
    used = disk.stat().st_blocks
    with InPlace(str(disk), size, SOURCE) as target:
        target.zero(0, size - 7)
        target.zero(size - 7, 7)
        target.finish()
        assert target.bytes_written == 4 << 20
    assert disk.read_bytes().count(0) == size
    assert disk.stat().st_blocks < used // 2


@settings(max_examples=40)
@given(
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, SIZE), st.integers(0, 300_000)), max_size=6),
    seed=st.integers(0, 5),
)
def test_any_writes_and_zeroes(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[bool, int, int]], seed: int) -> None:
    disk = tmp_path_factory.getbasetemp() / "any.raw"
    disk.write_bytes(OLD)
    wanted = bytearray(OLD)
    fill = random.Random(seed).randbytes(300_000)
    with InPlace(str(disk), SIZE, SOURCE) as target:
        for zero, start, asked in steps:
            length = min(asked, SIZE - start)
            wanted[start : start + length] = bytes(length) if zero else fill[:length]
            if zero:
                target.zero(start, length)
            else:
                target.write(start, fill[:length])
        target.finish()
    assert disk.read_bytes() == wanted


def test_other_formats_and_sizes_are_refused(disk: Path) -> None:
    for size in (SIZE - 1, SIZE + 1):
        with pytest.raises(TargetUnsuitable, match=rf"has {SIZE} bytes, the disk {size}. Nothing was written"):
            InPlace(str(disk), size, SOURCE)
    disk.write_bytes(b"QFI\xfb\0\0\0\3" + OLD[8:])
    with pytest.raises(TargetUnsuitable, match="is a qcow2 image"):
        InPlace(str(disk), SIZE, SOURCE)


def test_a_mark_that_is_none_is_not_removed(disk: Path) -> None:
    other = Path(str(disk) + MARK_SUFFIX)
    other.write_text("my notes")
    with pytest.raises(TargetUnsuitable, match="not the mark"):
        InPlace(str(disk), SIZE, SOURCE)
    assert other.read_text() == "my notes"


def test_links_are_followed_and_the_mark_is_beside_the_real_file(disk: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(disk)
    with InPlace(str(tmp_path / "link"), SIZE, SOURCE) as target:
        target.write(0, changed(0)[:4096])
        assert target.path == str(disk)
        assert Path(str(disk) + MARK_SUFFIX).exists()
        target.write(0, OLD[:4096])
        target.finish()


def test_the_lock_is_taken_first_and_freed_last(disk: Path) -> None:
    events: list[str] = []

    @contextmanager
    def lock() -> Iterator[None]:
        events.append("locked")
        try:
            yield
        finally:
            events.append("freed, marked" if os.path.exists(str(disk) + MARK_SUFFIX) else "freed, mark gone")

    with InPlace(str(disk), SIZE, SOURCE, lock=lock()) as target:
        target.write(0, changed(1))
        target.finish()
    with pytest.raises(TargetUnsuitable):
        InPlace(str(disk), SIZE + 1, SOURCE, lock=lock())
    assert events == ["locked", "freed, mark gone", "locked", "freed, mark gone"]
