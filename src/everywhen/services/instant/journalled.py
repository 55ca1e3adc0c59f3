# SPDX-License-Identifier: AGPL-3.0-or-later
"""A disk that a VM runs from: a moment, an overlay that is a cache of what was written, and the spool, which has it.

A write is answered when the spool's file has it, a flush when that is synced. Why nothing else is kept: docs/return.md.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator

from everywhen.capture.counters import TAKEN, Counters
from everywhen.capture.spool_writer import Record, SpoolWriter
from everywhen.formats.segment import WRITE, ZERO
from everywhen.services.view.overlay import Overlay


class Spooler:
    """The spool as disks write to it: each call returns when what it says is so. For several threads."""

    def __init__(self, writer: SpoolWriter, counters: Counters) -> None:
        self._writer = writer
        self._counters = counters

    def take(self, record: Record) -> int:
        """Take a record; the number after it. Raises OSError where nothing is taken any more."""
        number = self._writer.take([record])
        if number is None:
            self._writer.await_written(self._counters.get(TAKEN) + 1)  # says why
            raise OSError(errno.EIO, "the spool takes no more")
        return number + 1

    def written(self, number: int) -> None:
        """Wait until a record, by the number after it, outlives this process. Raises OSError."""
        self._writer.await_written(number)

    def sync(self) -> None:
        """Wait until all that was taken is on the disk. Raises OSError."""
        self._writer.await_durable(self._counters.get(TAKEN))


class JournalledDisk:
    """Is `nbd.devices.Device` and `nbd.devices.Writer`. For several threads."""

    def __init__(self, number: int, overlay: Overlay, spooler: Spooler) -> None:
        """`number`: of the disk in its stream. The overlay is the caller's to close."""
        self.size = overlay.size
        self._number = number
        self._overlay = overlay
        self._spooler = spooler
        self._order = threading.Lock()
        """Of two writes to the same bytes the one that readers see last has the later record."""

    def read(self, offset: int, length: int) -> bytes:
        """Exactly the bytes asked for. Raises what the moment's disk raises, and OSError."""
        return self._overlay.read(offset, length)

    def read_cached(self, offset: int, length: int) -> bytes | None:
        """The same where nothing has to be waited for, else None."""
        return self._overlay.read_cached(offset, length)

    def status(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        """(bytes, whether they are known to be zero) of a range, in order."""
        return self._overlay.status(offset, length)

    def write(self, offset: int, data: bytes) -> None:
        """Raises OSError, and what the moment's disk raises; then what these bytes are is not known."""
        if not data:
            return
        with self._order:
            # The overlay first: what it has no room for is no write, here or in the journal.
            self._overlay.write(offset, data)
            number = self._spooler.take((WRITE, self._number, offset, len(data), data))
        self._spooler.written(number)

    def zero(self, offset: int, length: int) -> None:
        """Zeroes over a range. Raises as `write`."""
        if not length:
            return
        with self._order:
            self._overlay.zero(offset, length)
            number = self._spooler.take((ZERO, self._number, offset, length, b""))
        self._spooler.written(number)

    def flush(self) -> None:
        """What was answered, of all disks, is found again after a power cut. Raises OSError."""
        self._spooler.sync()
