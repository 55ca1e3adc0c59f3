# SPDX-License-Identifier: AGPL-3.0-or-later
"""A spool as a killed capture leaves it, made by the code that writes spools."""

from __future__ import annotations

from pathlib import Path

from everywhen.block.patched import Patches
from everywhen.capture.counters import CLOSED, DURABLE, ROLL, ROLLED, Counters
from everywhen.capture.sink_process import SinkOrder
from everywhen.capture.spool_reader import spool_files
from everywhen.capture.spool_writer import SpoolWriter
from everywhen.formats.fields import canonical_json
from everywhen.formats.keyslot import Keyset
from everywhen.formats.point import RecoveryPoint, Tree
from everywhen.formats.segment import MARK, WRITE, ZERO
from everywhen.repository.keys.segment_keys import JournalRecipient
from everywhen.repository.ledger import Vm
from everywhen.repository.repository import Repository
from everywhen.repository.writer import write_point
from everywhen.services.identities import record
from everywhen.services.protect.sealing import Origin, SealedDisk, Sealer
from everywhen.services.protect.spooling import Spool
from everywhen.services.replay import Replay
from tests.hypervisor import eventually

SIZE = 300_000
STREAM = "5a" * 16
VM = Vm("7" * 32, "web1", "web1", "", "", 0)
WRITES = 17
NOT_ENCRYPTED = Keyset(b"n" * 32, {})


def sink_order(
    folder: Path,
    sizes: list[int],
    keyset: Keyset = NOT_ENCRYPTED,
    *,
    repository: bytes = bytes(16),
    stream: str = "ab" * 16,
    epoch: int = 1,
    limit: int = 1 << 30,
) -> SinkOrder:
    """To spool writes to disks of these sizes in a folder, for a repository with these keys; as its process reads it."""
    recipient = JournalRecipient.of(repository, keyset)
    identity = (recipient.repository.hex(), recipient.generation, recipient.public.hex())
    return SinkOrder.decode(SinkOrder(sizes, str(folder), limit, stream, epoch, *identity).encode())


def states() -> list[bytes]:
    """What the disk holds after each write."""
    content = bytearray(SIZE)
    found = [bytes(content)]
    for number in range(WRITES):
        offset, length = number * 15_013 % (SIZE - 70_000), [512, 66_000, 4096][number % 3]
        content[offset : offset + length] = bytes([0 if number % 5 == 4 else number + 1]) * length
        found.append(bytes(content))
    return found


def spooled(repository: Repository, folder: Path) -> RecoveryPoint:
    """A spool of three segments, the last one torn at its end, as a killed capture leaves it; and its first point."""
    counters = Counters.create()
    order = sink_order(folder, [SIZE], repository.unlocked.keyset, repository=repository.id, stream=STREAM)
    writer = SpoolWriter(order.place(), counters)

    def mark(what: str) -> None:
        text = canonical_json({"mark": what})
        writer.take([(MARK, 0, 0, len(text), text)])

    mark("tap opened")
    mark("complete")
    for number in range(WRITES):
        offset, length = number * 15_013 % (SIZE - 70_000), [512, 66_000, 4096][number % 3]
        zero = number % 5 == 4
        taken = writer.take([(ZERO if zero else WRITE, 0, offset, length, b"" if zero else bytes([number + 1]) * length)])
        assert taken is not None
        if number in (5, 11):
            counters.put(ROLL, counters.get(ROLL) + 1)
            eventually(lambda: counters.get(ROLL) == counters.get(ROLLED), "a segment is closed")
    writer.close()
    assert (counters.get(CLOSED), counters.get(DURABLE)) == (3, WRITES + 2)
    counters.close()
    with spool_files(folder)[-1].path.open("ab") as torn:
        torn.write(b"EWg1 a group that was cut off")
    record(repository, VM)
    with write_point(repository, "test", first_copy=True) as making:
        replay = Replay([Patches()], 0, following=False)
        sealer = Sealer(repository, making, [SealedDisk("vda", SIZE, Tree(SIZE, None))], replay)
        for group in Spool(repository, folder, 1, STREAM).groups(0):
            sealer.feed(group, 2)
        return sealer.commit(None, Origin(VM.vm, 1, STREAM, {}), 0)


def sealed_further(repository: Repository, folder: Path, point: RecoveryPoint, until: int) -> RecoveryPoint:
    """The next point of that spool's stream, at a record; the spool stays as it is."""
    assert point.journal is not None
    with write_point(repository, "test", first_copy=False) as making:
        sealer = Sealer.after(repository, making, point, point.journal)
        for group in Spool(repository, folder, 1, STREAM).groups(point.journal.sequence):
            sealer.feed(group, until)
        return sealer.commit(point, Origin(VM.vm, 1, STREAM, {}), 0)
