# SPDX-License-Identifier: AGPL-3.0-or-later
"""Writes over a disk that cannot be written: read back, zeroed, flushed, found again; and what is refused."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from everywhen.block.device import BLOCK_SIZE
from everywhen.formats.overlay import HEADER_SIZE, OverlayHeader
from everywhen.services.view.overlay import Overlay, OverlayUnusable

SIZE = 5 * BLOCK_SIZE + 1000
OVER = "web1/vda@p-0123456789ab+3"


class Below:
    """A disk in memory; its second half is zero."""

    size = SIZE

    def __init__(self) -> None:
        self.content = random.Random(5).randbytes(SIZE // 2).ljust(SIZE, b"\0")

    def read(self, offset: int, length: int) -> bytes:
        return self.content[offset : offset + length]

    def read_cached(self, offset: int, length: int) -> bytes | None:
        return self.read(offset, length) if offset >= SIZE // 2 else None

    def status(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        data = max(0, min(offset + length, SIZE // 2) - offset)
        yield from ((count, zero) for count, zero in ((data, False), (length - data, True)) if count)


@pytest.mark.parametrize("name", [None, "kept"])
def test_reads_give_what_was_written_last(tmp_path: Path, name: str | None) -> None:
    below, chance = Below(), random.Random(7)
    overlay = Overlay(below, str(tmp_path), name, over=OVER)
    expected = bytearray(below.content)
    for _ in range(300):
        offset = chance.randrange(SIZE)
        length = min(chance.choice([1, 100, 4096, 12_288, 100_000]), SIZE - offset)
        match chance.randrange(3):
            case 0:
                data = chance.randbytes(length)
                overlay.write(offset, data)
                expected[offset : offset + length] = data
            case 1:
                overlay.zero(offset, length)
                expected[offset : offset + length] = bytes(length)
            case _:
                assert overlay.read(offset, length) == expected[offset : offset + length]
                assert overlay.read_cached(offset, length) in (None, expected[offset : offset + length])
    assert overlay.read(0, SIZE) == expected
    at = 0
    for length, zero in overlay.status(0, SIZE):
        assert not zero or not any(expected[at : at + length])
        at += length
    assert at == SIZE
    overlay.close()
    assert below.content == Below().content
    assert sorted(os.listdir(tmp_path)) == ([] if name is None else ["kept.content", "kept.map"])
    if name:
        again = Overlay(below, str(tmp_path), name, over=OVER)
        assert again.read(0, SIZE) == expected
        again.close()


def test_zeroes_take_no_room_and_are_known(tmp_path: Path) -> None:
    overlay = Overlay(Below(), str(tmp_path), "kept", over=OVER)
    overlay.zero(0, 3 * BLOCK_SIZE)
    overlay.flush()
    assert (tmp_path / "kept.content").stat().st_size == 0
    assert list(overlay.status(0, 2 * BLOCK_SIZE)) == [(2 * BLOCK_SIZE, True)]
    overlay.close()


def test_what_was_flushed_is_found_when_the_rest_is_lost(tmp_path: Path) -> None:
    below = Below()
    overlay = Overlay(below, str(tmp_path), "kept", over=OVER)
    overlay.write(100, b"flushed")
    overlay.flush()
    overlay.write(2 * BLOCK_SIZE, b"not flushed")
    # As after a power cut: of what was not flushed the map knows nothing, and the content may or may not be there.
    content, states = (tmp_path / "kept.content").read_bytes(), (tmp_path / "kept.map").read_bytes()
    for number, kept in enumerate((content, content[:8192])):
        (tmp_path / f"cut{number}.content").write_bytes(kept)
        (tmp_path / f"cut{number}.map").write_bytes(states)
        again = Overlay(below, str(tmp_path), f"cut{number}", over=OVER)
        assert again.read(98, 11) == below.content[98:100] + b"flushed" + below.content[107:109]
        assert again.read(2 * BLOCK_SIZE, 11) == below.content[2 * BLOCK_SIZE : 2 * BLOCK_SIZE + 11]
        again.close()
    overlay.close()


def test_two_programs_do_not_write_to_one_overlay(tmp_path: Path) -> None:
    overlay = Overlay(Below(), str(tmp_path), "kept", over=OVER)
    with pytest.raises(OverlayUnusable, match="in use"):
        Overlay(Below(), str(tmp_path), "kept", over=OVER)
    overlay.close()


@pytest.mark.parametrize(
    ("spoilt", "why"),
    [
        (OverlayHeader(SIZE, "web1/vda@p-aaaaaaaaaaaa").encode(), "lies over web1/vda@p-aaaaaaaaaaaa"),
        (OverlayHeader(SIZE + 1, OVER).encode(), "not over"),
        (b"EWo1", "has 4 of at least"),
        (b"x" * HEADER_SIZE, "not an overlay's map"),
        (OverlayHeader(SIZE, OVER).encode()[:-1] + b"x", "stray bytes"),
        (OverlayHeader(SIZE, OVER).encode() + b"\7", "a state that there is not"),
    ],
)
def test_a_map_of_something_else_is_refused(tmp_path: Path, spoilt: bytes, why: str) -> None:
    (tmp_path / "kept.map").write_bytes(spoilt)
    with pytest.raises(OverlayUnusable, match=why):
        Overlay(Below(), str(tmp_path), "kept", over=OVER)
    assert (tmp_path / "kept.map").read_bytes() == spoilt


def test_a_map_whose_content_is_gone_is_refused(tmp_path: Path) -> None:
    overlay = Overlay(Below(), str(tmp_path), "kept", over=OVER)
    overlay.write(2 * BLOCK_SIZE, bytes(8192))
    overlay.close()
    os.truncate(tmp_path / "kept.content", 2 * BLOCK_SIZE + 4096)
    with pytest.raises(OverlayUnusable, match="missing or cut off"):
        Overlay(Below(), str(tmp_path), "kept", over=OVER)
    os.unlink(tmp_path / "kept.content")
    with pytest.raises(OverlayUnusable, match="missing or cut off"):
        Overlay(Below(), str(tmp_path), "kept", over=OVER)


class Slow(Below):
    """A disk that is far away: reads wait until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.let_go = threading.Event(), threading.Event()

    def read(self, offset: int, length: int) -> bytes:
        self.asked.set()
        assert self.let_go.wait(30)
        return super().read(offset, length)


def test_who_reads_what_is_at_hand_waits_for_no_writer(tmp_path: Path) -> None:
    """A part of a page needs the rest of it from below."""
    below = Slow()
    overlay = Overlay(below, str(tmp_path))
    overlay.write(0, bytes(4096))
    with ThreadPoolExecutor(2) as pool:
        write = pool.submit(overlay.write, 8192, b"some")
        assert below.asked.wait(30)
        reading = pool.submit(overlay.read_cached, 0, 4096)
        try:
            assert reading.result(10) == bytes(4096)
        finally:
            below.let_go.set()
        write.result(30)
    overlay.close()


def test_outside_of_the_disk_nothing_is_written(tmp_path: Path) -> None:
    overlay = Overlay(Below(), str(tmp_path))
    with pytest.raises(ValueError, match="outside"):
        overlay.write(SIZE - 1, b"ab")
    with pytest.raises(ValueError, match="outside"):
        overlay.zero(SIZE, 1)
    overlay.close()
