# SPDX-License-Identifier: AGPL-3.0-or-later
"""A disk whose writes lie in a spool alone: when they are answered, in which order they lie there, what a flush promises."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from everywhen.block.patched import Patches
from everywhen.capture.counters import DURABLE, TAKEN, Counters
from everywhen.capture.spool_reader import read_spooled, spool_files
from everywhen.capture.spool_writer import SpoolWriter
from everywhen.formats.segment import Group, SegmentHeader
from everywhen.repository.keys.cipher import Cipher
from everywhen.repository.keys.segment_keys import open_segment
from everywhen.services.instant.journalled import JournalledDisk, Spooler
from everywhen.services.replay import Replay
from everywhen.services.view.overlay import Overlay
from tests.spools import NOT_ENCRYPTED, sink_order

SIZE = 1 << 20


class Zeroes:
    """A disk below, all zero."""

    size = SIZE

    def read(self, _offset: int, length: int) -> bytes:
        return bytes(length)

    def read_cached(self, _offset: int, length: int) -> bytes | None:
        return bytes(length)

    def status(self, _offset: int, length: int) -> Iterator[tuple[int, bool]]:
        yield length, True


@contextmanager
def disk(folder: Path) -> Iterator[tuple[JournalledDisk, Counters]]:
    with ExitStack() as stack:
        counters = Counters.create()
        stack.callback(counters.close)
        writer = SpoolWriter(sink_order(folder, [SIZE]).place(), counters)
        stack.callback(writer.close)
        overlay = Overlay(Zeroes(), str(folder))
        stack.callback(overlay.close)
        yield JournalledDisk(0, overlay, Spooler(writer, counters)), counters


def groups(folder: Path) -> list[Group]:
    """What another process finds in the spool now."""

    def opener(header: SegmentHeader) -> Cipher:
        return open_segment(NOT_ENCRYPTED, bytes(16), header.cipher, header.generation, header.key)

    return [group for file in spool_files(folder) for group, _ in read_spooled(file, opener, last=True)]


def test_what_is_answered_is_in_the_file(tmp_path: Path) -> None:
    with disk(tmp_path) as (one, _):
        for number in range(1, 20):
            one.write(number * 4096, bytes([number]) * 512)
            assert sum(len(group) for group in groups(tmp_path)) == number
        one.zero(4096, 8192)
        one.write(0, b"")
        one.zero(0, 0)
        assert sum(len(group) for group in groups(tmp_path)) == 20


def test_what_is_flushed_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, sync = list[int](), os.fdatasync
    with disk(tmp_path) as (one, counters):

        def noted(descriptor: int) -> None:
            sync(descriptor)
            synced.append(counters.get(TAKEN))

        monkeypatch.setattr(os, "fdatasync", noted)
        for number in range(20):
            one.write(number * 4096, b"x" * 512)
            one.flush()
            assert counters.get(DURABLE) == number + 1 == synced[-1]
        one.flush()
        assert len(synced) == 20, "what is on the disk needs no second time"


def test_nothing_is_taken_after_a_sync_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_descriptor: int) -> None:
        raise OSError(5, "the disk fails")

    with disk(tmp_path) as (one, _):
        one.write(0, b"x" * 512)
        monkeypatch.setattr(os, "fdatasync", fails)
        with pytest.raises(OSError, match="takes no more"):
            one.flush()
        monkeypatch.undo()
        for asked in (one.flush, lambda: one.write(512, b"y" * 512), lambda: one.zero(512, 512)):
            with pytest.raises(OSError, match="takes no more"):
                asked()
    assert sum(len(group) for group in groups(tmp_path)) == 1


def test_of_writes_to_the_same_bytes_the_last_one_is_the_last_record(tmp_path: Path) -> None:
    with disk(tmp_path) as (one, _):

        def some(seed: int) -> None:
            chance = random.Random(seed)
            for _ in range(60):
                offset, length = chance.randrange(16) * 512, chance.choice([512, 4096, 6000])
                if chance.random() < 0.3:
                    one.zero(offset, length)
                else:
                    one.write(offset, bytes([seed + 1]) * length)

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(some, range(4)))
        found = one.read(0, 32_768)
    patches = Patches()
    replay = Replay([patches], 0, following=True)
    for group in groups(tmp_path):
        replay.feed(group)
    assert patches.over(0, bytes(65_536))[:32_768] == found
