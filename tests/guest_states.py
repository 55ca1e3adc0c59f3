# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether two disk images are a state in which a power cut at some instant could have left the guest of `guest.py`.

Judged by others' code: e2fsprogs replays the file systems' journals, checks them, and reads the records out. What a record
holds is computed here again, from its number.
"""

from __future__ import annotations

import struct
import subprocess
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from tests.moments import nanoseconds
from tests.program import Program

_SIZE = 512
_WORDS = 62
_MASK = (1 << 64) - 1
_CLEAN, _MENDED = 0, 1
"""Exit codes of e2fsck: nothing to do; all was mended (a journal replayed, a file removed that was deleted while open)."""


class Writer(Protocol):
    """Who wrote: when each record was asked for, and when it was known to be safe (Guest)."""

    issued: list[int]
    safe: list[int]


@dataclass(frozen=True, slots=True)
class State:
    """What two images hold: records; records, with those that have room but no content yet; journals that were replayed."""

    records: int
    begun: int
    replayed: int


@cache
def record(number: int) -> bytes:
    """The 512 bytes that the guest writes for a number (guest_init.c)."""
    words, state = [], number
    for _ in range(_WORDS):
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
        words.append(z ^ z >> 31)
    content = struct.pack(f"<4sQ{_WORDS}Q", b"EWG1", number, *words)
    return content + struct.pack("<I", zlib.crc32(content))


def restored(program: Program, moment: str) -> tuple[list[Path], int]:
    """Raw images of all disks of a VM at a moment (VM@WHEN), in their order, and the time that the program says they show.

    Images of an earlier call are replaced.
    """
    done = program.restore(moment, program.folder / "restored", "--overwrite")
    images = [program.folder / disk["path"] for _, disk in sorted(done["disks"].items())]
    return images, nanoseconds(done["time"])


def inspect(images: Sequence[Path]) -> State:
    """Replay, check and read two raw images, which are changed by it."""
    replayed, begun, counts = 0, 0, []
    for disk, image in enumerate(images):
        # -p mends what a power cut leaves and nothing else; -fn then looks at everything.
        mended = _run("e2fsck", "-p", image)
        assert mended.returncode in (_CLEAN, _MENDED), (image.name, mended)
        replayed += "recovering journal" in mended.stdout
        looked = _run("e2fsck", "-fn", image)
        assert looked.returncode == _CLEAN, (image.name, looked)
        content = _records(image)
        begun += -(-len(content) // _SIZE)
        counts.append(_count(disk, content))
    # Each record waited until the one before it, on the other disk, was safe.
    assert counts[0] in (counts[1], counts[1] + 1), f"a later record without an earlier one: {counts} on the disks"
    return State(sum(counts), begun, replayed)


def check(images: Sequence[Path], time_ns: int, guest: Writer) -> State:
    """The images must be the guest's disks at an instant: all that was safe by then, and nothing that was asked for later."""
    state = inspect(images)
    least, most = bisect_right(guest.safe, time_ns), bisect_right(guest.issued, time_ns)
    assert least <= state.records <= state.begun <= most, f"{state} at an instant with {least} to {most} records"
    return state


def _count(disk: int, content: bytes) -> int:
    """How many records a disk's file begins with.

    The one after them may have been under way: the file's new length may be on the disk, and its new data not yet.
    """
    count = 0
    while content[_SIZE * count : _SIZE * (count + 1)] == record(2 * count + disk):
        count += 1
    rest = content[_SIZE * count :]
    assert len(rest) <= _SIZE, f"disk {disk}: {len(rest)} bytes after record {count} of its own"
    assert not any(rest), f"disk {disk}: record {count} of its own is neither whole nor absent: {rest.hex()}"
    return count


def _records(image: Path) -> bytes:
    """The file that the guest appends its records to; empty before there is one."""
    out = image.with_suffix(".records")
    out.unlink(missing_ok=True)
    done = _run("debugfs", "-R", f"dump /records {out}", image)
    assert done.returncode == 0, done
    if not out.exists():
        assert "File not found" in done.stderr, done
        return b""
    return out.read_bytes()


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
