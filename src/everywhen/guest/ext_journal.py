# SPDX-License-Identifier: AGPL-3.0-or-later
"""ext3 and ext4 as they are when their journal has been replayed, without a write: a moment of a running guest needs that.

What the log has of a block is read where it lies in the journal, whenever that block is read. So opening reads what says which
blocks are in the log, not these blocks (but where each transaction has one checksum: the oldest kind), and nothing is held but
where they are.

Source: the kernel's documentation, ext4 Data Structures and Algorithms, "Journal (jbd2)"; fs/jbd2/recovery.c. Why not by
e2fsck: docs/decisions/0008-file-systems-journals.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from everywhen.guest.errors import GuestDamaged
from everywhen.guest.ext_journal_file import JournalFile
from everywhen.guest.ext_journal_layout import MAGIC, emptied, parse_super
from everywhen.guest.ext_journal_log import Copy, Log
from everywhen.guest.ext_journal_super import SUPER_AT, SUPER_SIZE, read_super, recovered
from everywhen.guest.footprint import taking_down
from everywhen.guest.tree import Readable


class ReplayedVolume:
    """A volume with what its journal's log has laid over it. For one thread at a time."""

    def __init__(self, volume: Readable, file: JournalFile, log: Log, fixed: dict[int, bytes]) -> None:
        """`fixed`: blocks that are neither the volume's nor the log's."""
        self._volume = volume
        self._file = file
        self._log = log
        self._fixed = fixed
        self._checked: set[int] = set()
        """Of those in the log, the ones that were read once and fit their checksum."""

    @property
    def size(self) -> int:
        return self._volume.size

    @property
    def changed(self) -> list[int]:
        """Blocks of the file system (of its block size) that are not read where they are, ascending."""
        return sorted(self._log.copies.keys() | self._fixed.keys())

    def read(self, offset: int, length: int) -> bytes:
        """As of any volume. Raises GuestDamaged too, where the log's copy of a block is damaged; other blocks can be read."""
        below = self._volume.read(offset, length)  # also what is hidden: `footprint.py`
        size = self._file.block_size
        content: bytearray | None = None
        for block in range(offset // size, -(-(offset + length) // size)):
            with taking_down(None):
                above = self._above(block)
            if above is not None:
                content = content if content is not None else bytearray(below)
                first, end = max(offset, block * size), min(offset + length, (block + 1) * size)
                part = above[first - block * size : end - block * size]
                if content[first - offset : end - offset] != part:
                    self._rests_on_copy(block)
                    content[first - offset : end - offset] = part
        return below if content is None else bytes(content)

    def _rests_on_copy(self, block: int) -> None:
        """What was read is not in its place yet. (What is there does not rest on the log any more, whatever that has of it.)"""
        copy = self._log.copies.get(block)
        if copy is not None and block not in self._fixed:
            self._file.read(copy.at)

    def _above(self, block: int) -> bytes | None:
        fixed = self._fixed.get(block)
        if fixed is not None:
            return fixed
        copy = self._log.copies.get(block)
        return None if copy is None else self._copied(block, copy)

    def _copied(self, block: int, copy: Copy) -> bytes:
        if block not in self._checked:
            if not self._log.fits(copy):
                raise GuestDamaged(f"block {block} of the file system is in its journal, and damaged there")
            self._checked.add(block)
        content = self._file.read(copy.at)
        return MAGIC.to_bytes(4, "big") + content[4:] if copy.tag.escaped else content


@dataclass(frozen=True, slots=True)
class Replay:
    """What came of a journal."""

    volume: ReplayedVolume
    transactions: int
    """How many were whole."""
    notes: tuple[str, ...]
    """What was committed and is not shown, a sentence each."""


def replay(volume: Readable) -> Replay | None:
    """An ext volume with its journal replayed; None if it needs none: it was unmounted or frozen, or has no journal.

    Raises GuestUnsupported (the journal is on another device, or has features that are not known here), GuestLimit (it is
    longer than any usual one), GuestDamaged (it, or what leads to it, contradicts itself), and what the volume raises. The
    volume can then be read as it is: as it was before its journal.
    """
    super_block = read_super(volume)
    if not super_block.must_recover:
        return None
    file = JournalFile(volume, super_block)
    first = file.read(0)
    journal = parse_super(first, file.block_size, file.blocks)
    log = Log(file, journal)
    beyond = next((target for target in log.copies if target >= super_block.blocks), None)
    if beyond is not None:
        raise GuestDamaged(f"the journal has block {beyond} of a file system with {super_block.blocks}")
    fixed: dict[int, bytes] = {}
    replayed = ReplayedVolume(volume, file, log, fixed)
    # The log may have a copy of the superblock: it is that copy that says no longer that there is something to replay.
    place, at = divmod(SUPER_AT, file.block_size)
    block = replayed.read(place * file.block_size, file.block_size)
    fixed[place] = block[:at] + recovered(block[at : at + SUPER_SIZE]) + block[at + SUPER_SIZE :]
    fixed[file.place(0)] = emptied(first, journal, log.sequence + 1 & 0xFFFFFFFF)
    return Replay(replayed, log.transactions, _notes(log))


def _notes(log: Log) -> tuple[str, ...]:
    notes = []
    if log.damage:
        notes.append(f"{log.damage}: what was committed from there on is not shown")
    fast = log.fast_commits()
    if fast:
        notes.append(f"the journal ends with {fast} fast commits: what they changed is shown as it was before")
    return tuple(notes)
