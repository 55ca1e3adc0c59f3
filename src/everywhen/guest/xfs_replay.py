# SPDX-License-Identifier: AGPL-3.0-or-later
"""XFS as it is when its log has been replayed, without a write: a moment of a running guest needs that.

All that was committed is put over the volume in memory (`guest/xfs_overlay.py`), in the order in which the kernel does it. What
the kernel does afterwards is not done: it ends operations of several transactions of which the last ones are missing, and
removes inodes without a name. The latter nobody sees; free space neither. Of the former those that would change what a file has
are counted, and said.

Source: kernel, xfs_log_recover.c (`xlog_recover_reorder_trans`, `xlog_recover_process_intents`). Why not by a kernel:
docs/decisions/0011-logs-of-xfs-and-btrfs.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from everywhen.formats.filesystems import xfs_log
from everywhen.formats.filesystems.xfs import SUPERBLOCK_BYTES, decode_superblock
from everywhen.formats.filesystems.xfs_log import BufferFlag, Item
from everywhen.guest.errors import GuestUnsupported
from everywhen.guest.reading import piece
from everywhen.guest.tree import Readable
from everywhen.guest.xfs_log import XfsLog
from everywhen.guest.xfs_overlay import XfsOverlay
from everywhen.guest.xfs_transactions import LoggedItem, Transaction, committed

_KNOWN_LOG_FEATURES: Final = 1
_DONE: Final = {done: intent for intent, done in xfs_log.INTENTS.items()}


@dataclass(frozen=True, slots=True)
class XfsReplay:
    """What came of a log."""

    volume: XfsOverlay
    transactions: int
    unfinished: int
    """Changes of files' maps and attributes that were begun, and that the kernel would end."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever looks must know, a sentence each."""
        if not self.unfinished:
            return ()
        half_done = f"{self.unfinished} changes of files that share blocks, or of attributes, were half done and are shown so"
        return (f"{half_done}: the guest ends them when it mounts it.",)


def replay(volume: Readable) -> XfsReplay | None:
    """An XFS with its log replayed; None if it was unmounted.

    Raises GuestUnsupported (the log is on another device, of another order of bytes, or has items that are not known here),
    GuestLimit (it is too long, or changes too much), GuestDamaged and FormatError (it contradicts itself), and what the volume
    raises. The volume can then be read as it is: as it was before its log.
    """
    raw = piece(volume, 0, SUPERBLOCK_BYTES, "the superblock")
    head = decode_superblock(raw)
    if not head.log:
        raise GuestUnsupported("the log is on another device")
    records = XfsLog(volume, head).to_replay()
    if records is None:
        return None
    if head.version == 5 and int.from_bytes(raw[220:224], "big") & ~_KNOWN_LOG_FEATURES:
        raise GuestUnsupported("the log has features that are not known here")
    overlay = XfsOverlay(volume, head)
    count, begun = 0, set[tuple[int, int]]()
    for transaction in committed(records):
        _apply(overlay, transaction)
        overlay.check_cost()
        _note(begun, transaction)
        count += 1
    return XfsReplay(overlay, count, len(begun))


def _apply(overlay: XfsOverlay, transaction: Transaction) -> None:
    """Buffers and new inodes first, then inodes, what was freed last."""
    cancelled: list[LoggedItem] = []
    for item in transaction.items:
        if item.kind == Item.CREATE:
            overlay.create_inodes(item)
        elif item.kind == Item.BUFFER:
            if int.from_bytes(item.regions[0][4:6], "little") & BufferFlag.CANCEL:
                cancelled.append(item)
            else:
                overlay.put_buffer(item)
        elif item.kind not in xfs_log.KNOWN_ITEMS:
            raise GuestUnsupported(f"the log has items of a kind that is not known here ({item.kind:#x})")
    for item in transaction.items:
        if item.kind == Item.INODE:
            overlay.put_inode(transaction.number, item)
    for item in cancelled:
        overlay.cancel(item)


def _note(begun: set[tuple[int, int]], transaction: Transaction) -> None:
    """Intents of this transaction, without those that it ends."""
    for item in transaction.items:
        if item.kind in xfs_log.INTENTS:
            begun.add((item.kind, xfs_log.decode_intent(item.regions[0])))
        elif item.kind in _DONE:
            begun.discard((_DONE[Item(item.kind)], xfs_log.decode_intent(item.regions[0])))
