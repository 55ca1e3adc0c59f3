# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the log of jbd2's journal says: which blocks of the file system are in it, by the transactions that are whole.

Sources: the kernel's documentation, ext4 Data Structures and Algorithms, "Journal (jbd2)": "Layout", "Descriptor Block", "Data
Block", "Revocation Block", "Commit Block", "Fast commits"; where it ends and what counts: the passes of fs/jbd2/recovery.c.

The kernel goes over the log three times: to find its end, to collect what is revoked, to write. Here once is enough, since
nothing is written: of each block the latest copy is kept, and when a transaction is whole its revocations take out the copies
of that and of all earlier transactions. What is left is what the kernel would have written last.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

from everywhen.formats.images.crc32c import crc32c
from everywhen.guest.ext_journal_file import JournalFile
from everywhen.guest.ext_journal_layout import Commit, Incompat, Kind, Super, Tag, header, sum_on

_TAG_TAIL: Final = 8
_TAG_HEAD: Final = 9
_MOST_FAST_BLOCKS: Final = 4096
"""mke2fs makes 256 unless it is told otherwise."""
_NO_REGISTER: Final = b"\xff" * 4
"""Bytes after which the register of CRC-32C, which begins with ones, is zero: that of fast commits begins so."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A block of the file system in the log: block `at` of the journal."""

    at: int
    sequence: int
    tag: Tag


@dataclass(slots=True)
class _Transaction:
    copies: list[Copy] = field(default_factory=list)
    revocations: list[int] = field(default_factory=list)
    """Blocks of the journal."""
    intact: bool = True
    register: int = 0xFFFFFFFF


class Log:
    """The log as far as it is whole. `damage` is why it ends where something goes on, None where it ends by itself."""

    def __init__(self, file: JournalFile, journal: Super) -> None:
        """Reads the whole log, but of blocks of the file system only those that a checksum needs. Raises GuestDamaged."""
        self._file = file
        self._journal = journal
        self._at = journal.start
        self._left = journal.last - journal.first
        """Blocks that have not been gone over: no log is longer, whatever it says."""
        self.sequence = journal.sequence
        """Of the transaction that would come next."""
        self.transactions = 0
        self.copies: dict[int, Copy] = {}
        self.damage: str | None = None
        self._seconds = 0
        if journal.start:
            self._scan()

    def _scan(self) -> None:
        transaction = _Transaction()
        while self._left > 0 and self.damage is None:
            at, block = self._next()
            found = header(block)
            if found is None or found[1] != self.sequence:
                return
            if found[0] == Kind.DESCRIPTOR:
                self._describe(transaction, block)
            elif found[0] == Kind.REVOKE:
                transaction.revocations.append(at)
                transaction.intact &= self._journal.intact(block)
            elif found[0] != Kind.COMMIT or not self._commit(transaction, self._journal.commit(block)):
                return
            else:
                transaction = _Transaction()

    def _next(self) -> tuple[int, bytes]:
        at = self._skip(1)
        return at, self._file.read(at)

    def _skip(self, blocks: int) -> int:
        """Go on in the ring; returns where it was."""
        at, first = self._at, self._journal.first
        self._at = first + (at - first + blocks) % (self._journal.last - first)
        self._left -= blocks
        return at

    def _describe(self, transaction: _Transaction, block: bytes) -> None:
        transaction.intact &= self._journal.intact(block)
        if self._journal.sums_transactions:
            transaction.register = sum_on(transaction.register, block)
        for tag in self._journal.tags(block):
            if self._left <= 0:
                return
            at = self._skip(1)
            transaction.copies.append(Copy(at, self.sequence, tag))
            if self._journal.sums_transactions:
                transaction.register = sum_on(transaction.register, self._file.read(at))

    def _commit(self, transaction: _Transaction, commit: Commit) -> bool:
        """Take over a transaction that ends here, if it is whole."""
        if not (
            transaction.intact
            and commit.intact
            and commit.checksum in (None, transaction.register)
            and (not self._journal.incompat & Incompat.ASYNC_COMMIT or all(map(self.fits, transaction.copies)))
        ):
            self._end_before(commit)
            return False
        for copy in transaction.copies:
            self.copies[copy.tag.target] = copy
        for at in transaction.revocations:
            for target in self.copies.keys() & self._journal.revoked(self._file.read(at)):
                del self.copies[target]
        self._seconds = commit.seconds
        self.sequence = self.sequence + 1 & 0xFFFFFFFF
        self.transactions += 1
        return True

    def fits(self, copy: Copy) -> bool:
        """Whether a copy has the checksum that was written down for it."""
        return self._journal.tag_fits(copy.tag, copy.sequence, self._file.read(copy.at))

    def _end_before(self, commit: Commit) -> None:
        """The transaction is not whole. That is no damage if it is of an older life of the journal, or overtook its blocks."""
        if commit.seconds < self._seconds:
            return
        if self._journal.incompat & Incompat.ASYNC_COMMIT and self._left > 0:
            later = header(self._file.read(self._at))
            if later is None or later[1] != self.sequence + 1 & 0xFFFFFFFF:
                return
        self.damage = f"transaction {self.sequence} of the journal is damaged"

    def fast_commits(self) -> int:
        """How many fast commits follow the last transaction: what has changed since, told in another way than by blocks.

        Counted as the kernel does (`ext4_fc_replay_scan`): entries of u16 kind, u16 length and a value, numbers little-endian.
        The first of all is a head; each commit ends with a tail: the transaction's number and the CRC-32C of all before.
        """
        journal, found, passed, head = self._journal, 0, bytearray(_NO_REGISTER), False
        if not journal.incompat & Incompat.FAST_COMMIT or not journal.start or self.damage:
            return 0
        for at in range(journal.last + 1, min(journal.blocks, journal.last + _MOST_FAST_BLOCKS)):
            block, place = self._file.read(at), 0
            while place + 12 <= journal.block_size:
                kind, length, first, second = struct.unpack_from("<HHII", block, place)
                if kind == _TAG_TAIL:
                    passed += block[place : place + 8]
                    if first != self.sequence or second != crc32c(bytes(passed)) ^ 0xFFFFFFFF:
                        return found
                    found, passed = found + 1, bytearray(_NO_REGISTER)
                    break
                head = head or (kind == _TAG_HEAD and second == self.sequence)
                if not head or not 0 < kind <= _TAG_HEAD or place + 4 + length > journal.block_size:
                    return found
                passed += block[place : place + 4 + length]
                place += 4 + length
            else:
                passed += block[place:]
        return found
