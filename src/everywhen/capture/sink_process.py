# SPDX-License-Identifier: AGPL-3.0-or-later
"""The sink as a process: `python -m everywhen.capture.sink_process CONTROL COUNTERS`, its order as JSON on standard input.

It is killed without warning by the watchdog, and may be: all it owns is the newest spool file, whose torn end is expected.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from everywhen.capture.counters import Counters
from everywhen.capture.shared_clock import SharedClock
from everywhen.capture.sink import Sink
from everywhen.capture.spool_writer import SpoolPlace, SpoolWriter
from everywhen.capture.wall_clock import WatchedClock
from everywhen.formats.fields import canonical_json, hexbytes, parse_json, text, whole
from everywhen.formats.segment import SegmentHeader
from everywhen.repository.index.process_lock import try_lock
from everywhen.repository.keys.cipher import Cipher
from everywhen.repository.keys.segment_keys import JournalRecipient
from everywhen.storage.allocator import keep_large_buffers

_LONGEST_ORDER = 1 << 20


@dataclass(frozen=True, slots=True)
class SinkOrder:
    """What a sink is to do: sizes of the disks in bytes; where it spools and how much; the stream, and for whom; the clock that
    it shares with other VMs' sinks, '' where it shares none."""

    sizes: list[int]
    folder: str
    limit: int
    stream: str
    epoch: int
    repository: str
    generation: int
    public: str
    clock: str = ""

    def encode(self) -> bytes:
        """As `decode` reads it."""
        return canonical_json(asdict(self))

    @classmethod
    def decode(cls, data: bytes) -> SinkOrder:
        """Raises Corrupt."""
        value = parse_json("the sink's order", data)
        sizes = [whole({"size": size}, "size") for size in value.get("sizes", [])]
        return cls(
            sizes=sizes,
            folder=text(value, "folder"),
            limit=whole(value, "limit"),
            stream=hexbytes(value, "stream", 16).hex(),
            epoch=whole(value, "epoch"),
            repository=hexbytes(value, "repository", 16).hex(),
            generation=whole(value, "generation"),
            public=text(value, "public"),
            clock=text(value, "clock", ""),
        )

    def place(self) -> SpoolPlace:
        """The spool as the writer wants it."""
        recipient = JournalRecipient(bytes.fromhex(self.repository), self.generation, bytes.fromhex(self.public))
        stream = bytes.fromhex(self.stream)

        def begin(number: int, sequence: int, time_ns: int) -> tuple[SegmentHeader, Cipher]:
            key, cipher = recipient.new_segment(os.urandom)
            place = (stream, self.epoch, number, sequence, time_ns)
            return SegmentHeader(recipient.cipher, self.generation, recipient.repository, *place, key), cipher

        return SpoolPlace(Path(self.folder), self.limit, begin)


def main(arguments: list[str]) -> int:
    """Descriptors: the socket to the watchdog, and the page of counters."""
    control, page = map(int, arguments)
    # What is sent to a whole group of processes, by a terminal or who manages it, is for `protect`, which ends us in order.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    order = SinkOrder.decode(sys.stdin.buffer.read(_LONGEST_ORDER))
    # Until this process ends: where `protect` was killed, the next one must not bring in what is being written still.
    if not try_lock(os.open(order.folder, os.O_RDONLY | os.O_DIRECTORY)):
        raise SystemExit("another sink writes to this spool")
    counters = Counters(page)
    keep_large_buffers()
    gc.freeze()  # looking through all that is there by now for cycles took 4 to 10 ms each time
    clock = SharedClock(order.clock, order.folder) if order.clock else None
    writer = SpoolWriter(order.place(), counters, clock, WatchedClock().kept_in(Path(order.folder) / "clock.json"))
    try:
        Sink(order.sizes, writer.take, counters, socket.socket(fileno=control), lambda: writer.behind).run()
    finally:
        writer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
