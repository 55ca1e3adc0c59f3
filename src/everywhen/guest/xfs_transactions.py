# SPDX-License-Identifier: AGPL-3.0-or-later
"""Transactions in an XFS's log, put together from the operations of its records (sources: formats/filesystems/xfs_log.py).

A transaction's operations may be spread over records, with others between them. What has no COMMIT when the log ends never
happened. What begins before the log does is left out, as in the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from everywhen.formats.filesystems import xfs_log
from everywhen.formats.filesystems.xfs_log import Flag
from everywhen.guest.errors import GuestDamaged, GuestLimit
from everywhen.guest.xfs_log import Record

_MOST_PENDING: Final = 224 << 20
"""Bytes of memory for transactions without a COMMIT; the kernel lets one grow to some 64 MiB, in many small regions."""
_REGION_COST: Final = 64


@dataclass(slots=True)
class LoggedItem:
    """An item of a transaction: its kind and its regions, the first of which describes it."""

    kind: int
    count: int
    regions: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class Transaction:
    """`number` is that of the record in which it began."""

    number: int
    items: list[LoggedItem] = field(default_factory=list)
    head: bytes = b""
    cost: int = 0

    def add(self, region: bytes) -> None:
        """The next region. Raises GuestDamaged, FormatError."""
        if not region:
            return
        if not self.head:
            if not xfs_log.is_head(region):
                raise GuestDamaged("a transaction in its log has no head")
            self.head = region
            return
        if not self.items or len(self.items[-1].regions) == self.items[-1].count:
            self.items.append(LoggedItem(*xfs_log.decode_item(region)))
        self.items[-1].regions.append(region)
        self.cost += len(region) + _REGION_COST

    def go_on(self, part: bytes) -> None:
        """More of the last region. Raises GuestDamaged."""
        if self.items:
            self.items[-1].regions[-1] += part
        elif self.head and len(self.head) + len(part) <= xfs_log.HEAD_BYTES:
            self.head += part
        else:
            raise GuestDamaged("a transaction in its log goes on that has not begun")
        self.cost += len(part)


def committed(records: Iterable[Record]) -> Iterator[Transaction]:
    """The transactions in the order in which they were committed. Raises GuestDamaged, GuestLimit, FormatError."""
    pending: dict[int, Transaction] = {}
    for record in records:
        for number, flags, region in record.operations():
            transaction = pending.get(number)
            if transaction is None:
                if flags & Flag.START:
                    pending[number] = Transaction(record.header.number)
            elif flags & Flag.COMMIT:
                yield _whole(pending.pop(number))
            elif flags & Flag.CONTINUES:
                transaction.go_on(region)
            elif not flags & (Flag.START | Flag.UNMOUNT):
                transaction.add(region)
            else:
                raise GuestDamaged("a transaction in its log begins twice")
        if sum(one.cost for one in pending.values()) > _MOST_PENDING:
            raise GuestLimit("its log has a larger transaction than there can be")


def _whole(transaction: Transaction) -> Transaction:
    if any(len(item.regions) != item.count for item in transaction.items):
        raise GuestDamaged("a transaction in its log is not whole")
    return transaction
