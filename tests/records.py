# SPDX-License-Identifier: AGPL-3.0-or-later
"""Journal records made by hand, and recovery points made of them."""

from __future__ import annotations

from everywhen.block.device import BLOCK_SIZE
from everywhen.block.patched import Patches
from everywhen.formats.fields import canonical_json
from everywhen.formats.point import RecoveryPoint, Tree
from everywhen.formats.segment import (
    MARK,
    WRITE,
    Group,
    SegmentHeader,
    decode_group,
    encode_frame,
    encode_group,
    group_aad,
    group_nonce,
)
from everywhen.repository.journal import Journal
from everywhen.repository.keys.segment_keys import JournalRecipient
from everywhen.repository.repository import Repository
from everywhen.repository.writer import write_point
from everywhen.services.protect.sealing import Origin, SealedDisk, Sealer
from everywhen.services.replay import Replay

Made = tuple[int, int, int, bytes]
CAPTURED = "a" * 32
"""Whose points `made` makes."""
SIZE = 4 * BLOCK_SIZE
"""Of each of its two disks."""


def mark(disk: int, what: str) -> Made:
    return MARK, disk, 0, canonical_json({"mark": what})


def clock_set(from_ns: int, to_ns: int) -> Made:
    return MARK, 0, 0, canonical_json({"mark": "clock set", "from_ns": from_ns, "to_ns": to_ns})


def write(disk: int, offset: int, content: bytes) -> Made:
    return WRITE, disk, offset, content


def group(first: int, *records: Made) -> Group:
    rows = [(kind, disk, offset, len(data), at) for at, (kind, disk, offset, data) in enumerate(records)]
    return decode_group(encode_group(first, 1000 * first, rows, [data for *_, data in records], 1))


OPENED = (mark(0, "tap opened"), mark(1, "tap opened"))
COMPLETE = (mark(0, "complete"), mark(1, "complete"))


def put_segment(repository: Repository, stream: str, number: int, *groups: Group) -> None:
    """A segment of these groups, sealed as a host would."""
    recipient = JournalRecipient.of(repository.id, repository.unlocked.keyset)
    key, cipher = recipient.new_segment(repository.surroundings.randomness)
    place = (bytes.fromhex(stream), 1, number, groups[0].sequence, groups[0].time_ns)
    header = SegmentHeader(recipient.cipher, recipient.generation, repository.id, *place, key)
    parts = [header.encode()]
    for ordinal, one in enumerate(groups):
        ends = one.data_ends().tolist()
        rows = zip(one.kinds, one.disks, one.offsets, one.lengths, one.times, strict=True)
        plain = encode_group(one.sequence, one.time_ns, [tuple(map(int, row)) for row in rows], [one.data()[: ends[-1]]], 1)  # type: ignore[misc]
        sealed = cipher.seal(group_nonce(ordinal), plain, group_aad(header, ordinal))
        parts += [encode_frame(ordinal, len(sealed)), sealed]
    Journal(repository, stream).put(number, parts)


def made(repository: Repository, parent: RecoveryPoint | None, epoch: int, stream: str, content: bytes) -> RecoveryPoint:
    """A capture's first point, or the next one where `parent` is of the same stream."""
    with write_point(repository, "test", first_copy=True) as writer:
        if parent and parent.journal and parent.journal.stream == stream * 32:
            sealer = Sealer.after(repository, writer, parent, parent.journal)
            sealer.feed(group(parent.journal.sequence, write(0, 0, content)))
        else:
            disks = [SealedDisk("vda", SIZE, Tree(SIZE, None)), SealedDisk("vdb", SIZE, Tree(SIZE, None))]
            sealer = Sealer(repository, writer, disks, Replay([Patches(), Patches()], 0, following=False))
            sealer.feed(group(0, *OPENED, *COMPLETE, write(0, BLOCK_SIZE, content)))
        return sealer.commit(parent, Origin(CAPTURED, epoch, stream * 32, {}), 0)
