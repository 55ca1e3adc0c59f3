# SPDX-License-Identifier: AGPL-3.0-or-later
"""The page that the sink writes and the watchdog reads: how far each connection has come.

Words of 64 bits in shared memory, each written by one process and read by others without a lock: an aligned word is stored and
loaded whole on every 64-bit machine. Times are CLOCK_MONOTONIC, which all processes of a host share.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence

CONNECTIONS = 62
"""Connections at once: two for each of the disks of a VM (its tap, and its copy)."""
_PER_CONNECTION = 128
_SIZE = 65536

# Words of the sink as a whole
TAKEN, DURABLE, WRITTEN_BYTES, STATE, TAKEN_BYTES, CLOSED, ROLL, ROLLED, BEAT_NS, LET_GO, LETS_GO, WORK_BYTES = range(12)
"""Sequence numbers after the newest record that was taken, and that is durable; bytes of spool written; see below; bytes of
data taken; segments that are closed; how often `protect` asked for the open one to be closed, and how often it was; when
the sink looked at its sockets last; whether `protect` wants it to let go of its taps, and whether it has; bytes that it takes
to make a point of what was taken: its data, and some for zeroes."""
# Words of a connection
RECEIVED, REQUESTS, ANSWERED, OLDEST_NS, WORST_NS, TAP = range(6)
"""The last one: the number after that of the disk whose tap it is; 0 where it is none."""

_SERVED_IN = 16
"""Where a connection counts how long its requests took: a word for each half of a power of two of nanoseconds."""
_BUCKETS = 80

FINE, SPOOL_FULL, SPOOL_SLOW, SPOOL_FAILED, NO_ROOM = range(5)
"""Values of STATE: why the sink lets go of its taps by itself. NO_ROOM: the spool has come to what it leaves to others."""


class Counters:
    """A view of the page; `descriptor` is passed on to the other process."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, _SIZE)
        self._words = memoryview(self._map).cast("Q")

    @classmethod
    def create(cls) -> Counters:
        """A new page of zeroes, inherited by child processes that are given its descriptor."""
        descriptor = os.memfd_create("everywhen-counters")
        os.ftruncate(descriptor, _SIZE)
        return cls(descriptor)

    def close(self) -> None:
        """Unmap the page."""
        self._words.release()
        self._map.close()
        os.close(self.descriptor)

    def get(self, word: int) -> int:
        """A word of the sink as a whole."""
        return self._words[word]

    def put(self, word: int, value: int) -> None:
        """Set a word of the sink as a whole."""
        self._words[word] = value

    def of(self, connection: int, word: int) -> int:
        """A word of a connection."""
        return self._words[_PER_CONNECTION * (2 + connection) + word]

    def put_of(self, connection: int, word: int, value: int) -> None:
        """Set a word of a connection."""
        self._words[_PER_CONNECTION * (2 + connection) + word] = value

    def received(self, connection: int, count: int, requests: int, now_ns: int) -> None:
        """Bytes came in, and with the last of them so many requests, at this instant."""
        words, at = self._words, _PER_CONNECTION * (2 + connection)
        words[at + RECEIVED] += count
        if requests:
            # Those before may have been taken, and be unanswered still.
            words[at + OLDEST_NS] = words[at + OLDEST_NS] or now_ns
            words[at + REQUESTS] += requests

    def answered(self, connection: int, requests: int, took_ns: int) -> None:
        """All requests that had come in were answered, after so long."""
        words, at = self._words, _PER_CONNECTION * (2 + connection)
        words[at + ANSWERED] += requests
        words[at + OLDEST_NS] = 0
        if took_ns > words[at + WORST_NS]:
            words[at + WORST_NS] = took_ns
        bits = max(2, took_ns.bit_length())
        words[at + _SERVED_IN + min(2 * bits + (took_ns >> bits - 2 & 1), _BUCKETS - 1)] += requests

    def served_within(self, share: float) -> int:
        """Nanoseconds within which this share (0 to 1) of all requests was answered; up to a third more, but no more than the
        longest took. 0 without requests."""
        # Only those that were ever used: `protect` asks four times a second, and all of them took 0.6 ms.
        used = [connection for connection in range(CONNECTIONS) if self.of(connection, REQUESTS)]
        return min(within([sum(counts) for counts in zip(*map(self._served, used), strict=True)], share), self.worst_ns())

    def _served(self, connection: int) -> list[int]:
        begin = _PER_CONNECTION * (2 + connection) + _SERVED_IN
        return self._words[begin : begin + _BUCKETS].tolist()

    def taps(self) -> Iterator[tuple[int, int, list[int], int]]:
        """Of each tap: its connection, the disk, how many requests took how long (for `within`), and the longest in ns."""
        for connection in range(CONNECTIONS):
            if disk := self.of(connection, TAP):
                yield connection, disk - 1, self._served(connection), self.of(connection, WORST_NS)

    def worst_ns(self) -> int:
        """The longest that any request took."""
        return max(self.of(connection, WORST_NS) for connection in range(CONNECTIONS))

    def clear(self, connection: int) -> None:
        """Make ready for a new connection under that number."""
        for word in range(_PER_CONNECTION):
            self.put_of(connection, word, 0)


def within(counts: Sequence[int], share: float) -> int:
    """Nanoseconds within which this share (0 to 1) of the requests was answered that are counted so; up to a third more."""
    left = share * sum(counts)
    for bucket, count in enumerate(counts):
        left -= count
        if count and left <= 0:
            bits, half = divmod(bucket, 2)
            return (1 << bits - 1) + (half + 1 << bits - 2)
    return 0
