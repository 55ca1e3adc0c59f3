# SPDX-License-Identifier: AGPL-3.0-or-later
"""Frames: what comes out is what went in, no more than was asked for, and nothing else passes for it."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everywhen.formats.errors import Corrupt
from everywhen.formats.zstd import compress, decompress, decompress_up_to

BASE = random.Random(1).randbytes(65536)
CHANGED = BASE[:20480] + random.Random(2).randbytes(4096) + BASE[24576:]


@given(st.binary(max_size=3000), st.binary(max_size=300), st.integers(-5, 19))
def test_round_trip(content: bytes, prefix: bytes, level: int) -> None:
    frame = compress(content, level, prefix)
    assert decompress(frame, len(content), prefix) == content
    assert decompress(memoryview(frame), 1 << 20, prefix) == content


def test_a_changed_page_costs_a_page() -> None:
    assert len(compress(CHANGED, 1, BASE)) < 4096 + 512
    assert len(compress(CHANGED, 1, BASE[:4096] + BASE)) < 4096 + 512


def test_without_its_prefix_a_frame_is_corrupt_or_something_else() -> None:
    with pytest.raises(Corrupt):
        decompress(compress(CHANGED, 1, BASE), 65536)


def test_more_than_was_asked_for_is_refused() -> None:
    with pytest.raises(Corrupt, match="at most 99"):
        decompress(compress(bytes(100), 1), 99)


@pytest.mark.parametrize("more", [b"\0", compress(b"a second frame", 1)])
def test_what_follows_the_frame_is_refused(more: bytes) -> None:
    with pytest.raises(Corrupt, match="does not end"):
        decompress(compress(b"content", 1) + more, 1000)


@given(st.data())
def test_a_cut_or_flipped_frame_is_corrupt_or_other_bytes(data: st.DataObject) -> None:
    frame = bytearray(compress(CHANGED[20000:25000], 3))
    cut = data.draw(st.integers(0, len(frame) - 1))
    with pytest.raises(Corrupt):
        decompress(bytes(frame[:cut]), 65536)
    frame[data.draw(st.integers(0, len(frame) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with contextlib.suppress(Corrupt):
        assert len(decompress(bytes(frame), 65536)) <= 65536


def test_frames_in_a_row() -> None:
    frames = compress(b"one", 1) + compress(b"two", 1)
    assert decompress_up_to(frames, 100, 23) == b"onetwo"
    assert decompress_up_to(frames, 4, 23) == b"onet"
    assert decompress_up_to(frames[:-3], 100, 23).startswith(b"one")
    with pytest.raises(Corrupt):
        decompress_up_to(b"no frame at all", 100, 23)


def test_a_window_larger_than_allowed_is_refused() -> None:
    content = random.Random(3).randbytes(1 << 18) * 2
    frame = compress(content, 1)
    assert decompress_up_to(frame, len(content), 23) == content
    with pytest.raises(Corrupt):
        decompress_up_to(frame, len(content), 12)
