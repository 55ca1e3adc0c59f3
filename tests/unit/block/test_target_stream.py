# SPDX-License-Identifier: AGPL-3.0-or-later
"""A disk down a pipe."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from everywhen.block.target import TargetError, TargetFull
from everywhen.block.target_stream import Stream


def test_zeroes_are_really_written_in_order() -> None:
    reader, writer = os.pipe()
    got = bytearray()

    def drain() -> None:
        while piece := os.read(reader, 1 << 16):
            got.extend(piece)

    thread = threading.Thread(target=drain)
    thread.start()
    size = (3 << 20) + 5
    with Stream(writer, size) as target:
        target.write(0, b"ab")
        target.zero(2, size - 4)
        target.write(size - 2, b"yz")
        target.finish()
    os.close(writer)
    thread.join()
    os.close(reader)
    assert got == b"ab" + bytes(size - 4) + b"yz"


def test_order_and_size_are_checked(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file, Stream(file.fileno(), 10) as target:
        target.write(0, b"abc")
        for offset, data in ((4, b"x"), (0, b"x"), (3, b"x" * 8)):
            with pytest.raises(ValueError, match="not what follows"):
                target.write(offset, data)
        with pytest.raises(ValueError, match="3 of 10"):
            target.finish()
        assert target.abandon() == "standard output got 3 of 10 bytes."
        target.zero(3, 7)
        target.finish()
        assert target.abandon() == ""


def test_a_reader_that_goes_away() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(TargetError, match="went away"), Stream(writer, 10) as target:
        target.write(0, b"abc")
    os.close(writer)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_no_room() -> None:
    with open("/dev/full", "wb", buffering=0) as file, pytest.raises(TargetFull), Stream(file.fileno(), 10) as target:
        target.write(0, b"abc")
