# SPDX-License-Identifier: AGPL-3.0-or-later
"""New files: nothing is replaced unasked, nothing half-made is left, nothing appears before it is whole."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from everywhen.block.target import TargetBusy, TargetExists, TargetFull, TargetUnsuitable, size_text
from everywhen.block.target_file import PARTIAL_SUFFIX, NewFile
from everywhen.block.target_mark import Mark, leave_mark, mark_path
from everywhen.formats.layouts.choose import FORMATS
from everywhen.formats.layouts.layout import Identity, Layout
from everywhen.formats.layouts.runs import Runs

IDENTITY = Identity(uuid.UUID(int=9), 1_700_000_000)
SIZE = 1_000_000


def raw(size: int = SIZE, allocated: Runs | None = None) -> Layout:
    return FORMATS["raw"](size, allocated or Runs.whole(size), IDENTITY)


def restore(path: Path, content: bytes = b"x" * SIZE, *, overwrite: bool = False) -> None:
    with NewFile(str(path), raw(len(content)), overwrite=overwrite) as target:
        target.write(0, content)
        target.finish()


def interrupted(path: Path, *, overwrite: bool = False) -> None:
    with NewFile(str(path), raw(), overwrite=overwrite) as target:
        target.write(0, b"x")
        raise ZeroDivisionError


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_the_name_appears_only_when_finished(tmp_path: Path) -> None:
    with NewFile(str(tmp_path / "a"), raw()) as target:
        target.write(0, b"x" * SIZE)
        assert names(tmp_path) == ["a" + PARTIAL_SUFFIX]
        target.finish()
        assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"x" * SIZE
    assert target.abandon() == ""
    assert names(tmp_path) == ["a"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        interrupted(tmp_path / "a")
    assert names(tmp_path) == []


def test_existing_files_stay(tmp_path: Path) -> None:
    path = tmp_path / "web1.qcow2"
    path.write_bytes(b"old" * 500)
    os.utime(path, (1_795_252_200, 1_795_252_200))
    with pytest.raises(TargetExists) as caught:
        restore(path)
    assert str(caught.value) == (
        f"{path} exists (1.5 kB, 2026-11-21 09:10 UTC). Nothing was written. "
        "Overwrite: --overwrite. Write only what differs: --in-place"
    )
    assert caught.value.size == 1500
    assert path.read_bytes() == b"old" * 500
    assert names(tmp_path) == ["web1.qcow2"]


def test_overwrite_replaces_at_the_end_and_keeps_the_rights(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(0o640)
    leave_mark(mark_path(str(path)), Mark("web1@latest", str(path), 3))
    with pytest.raises(ZeroDivisionError):
        interrupted(path, overwrite=True)
    assert path.read_bytes() == b"old"
    restore(path, b"new", overwrite=True)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert names(tmp_path) == ["a"]


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with NewFile(str(path), raw(3)) as target:
        target.write(0, b"new")
        path.write_bytes(b"other")
        with pytest.raises(TargetExists, match=r"complete in .*a\.everywhen-partial"):
            target.finish()
    assert path.read_bytes() == b"other"
    assert (tmp_path / ("a" + PARTIAL_SUFFIX)).read_bytes() == b"new"


def test_a_stale_partial_file_needs_overwrite(tmp_path: Path) -> None:
    (tmp_path / ("a" + PARTIAL_SUFFIX)).write_bytes(b"torn")
    with pytest.raises(TargetExists, match="unfinished restore"):
        restore(tmp_path / "a")
    restore(tmp_path / "a", b"new", overwrite=True)
    assert names(tmp_path) == ["a"]


@pytest.mark.skipif(sys.platform != "linux", reason="flock")
def test_a_partial_file_in_work_is_left_alone(tmp_path: Path) -> None:
    with NewFile(str(tmp_path / "a"), raw(3)) as target:
        with pytest.raises(TargetBusy, match="Another restore"):
            restore(tmp_path / "a", b"new", overwrite=True)
        target.write(0, b"abc")
        target.finish()
    assert (tmp_path / "a").read_bytes() == b"abc"


def test_symbolic_links_are_followed_and_said(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "store" / "real")
    restore(tmp_path / "link", b"abc")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "store" / "real").read_bytes() == b"abc"
    with pytest.raises(TargetExists, match=rf"link \(really {tmp_path}/store/real\) exists"):
        restore(tmp_path / "link", b"new")


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_file_is_refused(tmp_path: Path, overwrite: bool) -> None:
    for path, words in ((tmp_path, "is a folder"), (Path(os.devnull), "no regular file"), (tmp_path / "no/a", "no folder")):
        with pytest.raises(TargetUnsuitable, match=words):
            restore(path, overwrite=overwrite)


@pytest.mark.parametrize("name", list(FORMATS))
def test_data_where_nothing_is_allocated_is_a_fault(tmp_path: Path, name: str) -> None:
    layout = FORMATS[name](1 << 20, Runs.of_extents([(65536, 65536)]), IDENTITY)
    with NewFile(str(tmp_path / "a"), layout) as target:
        target.write(0, bytes(65536) + b"x" * 65536 + bytes(100))
        with pytest.raises(ValueError, match="not allocated"):
            target.write(131000, b"x" * 100)
        with pytest.raises(ValueError, match="outside"):
            target.write((1 << 20) - 1, b"xx")


def test_holes_stay_holes(tmp_path: Path) -> None:
    with NewFile(str(tmp_path / "a"), raw(1 << 40, Runs.of_extents([(1 << 39, 4096)]))) as target:
        target.write(1 << 39, b"x" * 4096)
        target.zero(0, 1 << 39)
        target.finish()
    found = (tmp_path / "a").stat()
    assert found.st_size == 1 << 40
    assert found.st_blocks <= 256


@pytest.mark.parametrize("name", list(FORMATS))
def test_many_threads(tmp_path: Path, name: str) -> None:
    size = 16 << 20
    disk = random.Random(2).randbytes(size)
    layout = FORMATS[name](size, Runs.whole(size), IDENTITY)
    with NewFile(str(tmp_path / "a"), layout) as target, ThreadPoolExecutor(8) as pool:
        pieces = np.random.default_rng(1).permutation(range(0, size, 100_000)).tolist()
        list(pool.map(lambda start: target.write(start, memoryview(disk)[start : start + 100_000]), pieces))
        target.finish()
    file = (tmp_path / "a").read_bytes()
    assert file == layout.read(0, layout.file_size, lambda offset, length: disk[offset : offset + length])


def test_the_lock_is_held_while_an_existing_file_is_replaced(tmp_path: Path) -> None:
    events: list[str] = []

    @contextmanager
    def lock() -> Iterator[None]:
        events.append("locked")
        yield
        events.append("free" if (tmp_path / "a").read_bytes() == b"new" else "too early")

    (tmp_path / "a").write_bytes(b"old")
    with NewFile(str(tmp_path / "a"), raw(3), overwrite=True, lock=lock()) as target:
        assert events == ["locked"]
        target.write(0, b"new")
        target.finish()
    assert events == ["locked", "free"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_and_cleaned_up(small_disk: Path) -> None:
    with NewFile(str(small_disk / "a"), raw(4 << 20)) as target:
        with pytest.raises(TargetFull, match="Make room"):
            target.write(0, b"x" * (4 << 20))
        # What a thread beside it hears must be as good an answer.
        with pytest.raises(TargetFull, match="Make room"):
            target.write(0, b"x")
        with pytest.raises(TargetFull, match="Make room"):
            target.finish()
    assert names(small_disk) == []


def test_a_disk_too_full_for_the_tables(small_disk: Path) -> None:
    layout = FORMATS["vhdx"](3 << 40, Runs.of_blocks(np.arange(0, 3 << 24, 512), 65536, 3 << 40), IDENTITY)
    with pytest.raises(TargetFull):
        NewFile(str(small_disk / "a"), layout)
    assert names(small_disk) == []


def test_sizes_for_people() -> None:
    sizes = [812, 1500, 40_000_000_000, 999_999, 5 * 10**15]
    assert [size_text(size) for size in sizes] == ["812 bytes", "1.5 kB", "40 GB", "1000 kB", "5000 TB"]
