# SPDX-License-Identifier: AGPL-3.0-or-later
"""A disk that can be written to, over one that cannot: what is written lies in files beside it, in pages of 4 KiB.

The map (`formats/overlay.py`) is written when a flush is asked for, after the content is on the disk: so what a flush has
acknowledged is found again, and the map never names a page whose content is not there. POSIX only.
"""

from __future__ import annotations

import errno
import itertools
import os
import tempfile
import threading
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from everywhen.block.device import DeviceError
from everywhen.block.target_descriptor import sync_folder
from everywhen.formats.errors import FormatError
from everywhen.formats.overlay import CONTENT, HEADER_SIZE, PAGE, UNDERNEATH, ZEROES, OverlayHeader
from everywhen.repository.index.process_lock import try_lock

_MAP_PART = 4096
"""States that are written to the map together: those of 16 MiB of the disk."""


class Underneath(Protocol):
    """The disk below an overlay; several threads may read it at once."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...

    def read_cached(self, offset: int, length: int) -> bytes | None: ...

    def status(self, offset: int, length: int) -> Iterator[tuple[int, bool]]: ...


class OverlayUnusable(DeviceError):
    """The files of a kept overlay are not what they should be. The message names them."""


class Overlay:
    """A device of which several threads may read and write at once. `close` it."""

    def __init__(self, below: Underneath, folder: str, name: str | None = None, *, over: str = "") -> None:
        """`name`: of a kept overlay, whose files NAME.content and NAME.map in `folder` are made, or taken up again where they
        lie over the same, `over`; without a name what is written is gone in the end. Raises OverlayUnusable, OSError.
        """
        self.size = below.size
        self._below = below
        self._lock = threading.Lock()
        """For the states, never held while anything is read or written: readers need it."""
        self._writing = threading.Lock()
        """One who writes or flushes at a time."""
        self._states = np.zeros(-(-below.size // PAGE), np.uint8)
        """Memory is taken only where there is something else than 0: a byte for each 4 KiB that are written."""
        self._unsaved: set[int] = set()
        self._sync_failed = False
        self._map = -1
        if name is None:
            with tempfile.TemporaryFile(dir=folder) as file:
                self._content = os.dup(file.fileno())
            return
        path = os.path.join(folder, name)
        self._content = os.open(path + ".content", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._map = os.open(path + ".map", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            _lock(self._map, path)
            self._take_up(path + ".map", OverlayHeader(below.size, over))
            sync_folder(folder)
        except BaseException:
            self._close()
            raise

    def read(self, offset: int, length: int) -> bytes:
        """Exactly the bytes asked for. Raises ValueError outside the disk, OSError, and what the disk below raises."""
        self._check(offset, length)
        parts = [self._part(at, end, state) for at, end, state in self._runs(offset, length)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_cached(self, offset: int, length: int) -> bytes | None:
        """The same where nothing has to be waited for, else None."""
        self._check(offset, length)
        parts: list[bytes] = []
        for at, end, state in self._runs(offset, length):
            part = self._below.read_cached(at, end - at) if state == UNDERNEATH else self._part(at, end, state)
            if part is None:
                return None
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def status(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        """(bytes, whether they are known to be zero) of a range, in order."""
        self._check(offset, length)
        for at, end, state in self._runs(offset, length):
            if state == UNDERNEATH:
                yield from self._below.status(at, end - at)
            else:
                yield end - at, state == ZEROES

    def write(self, offset: int, data: bytes) -> None:
        """Raises ValueError outside the disk, OSError, and what the disk below raises."""
        self._check(offset, len(data))
        if not data:
            return
        with self._writing:
            first, end = offset // PAGE, -(-(offset + len(data)) // PAGE)
            # A page is here as a whole or not at all: what is not written of the first and the last one comes from below.
            head, tail = offset - first * PAGE, min(end * PAGE, self.size) - offset - len(data)
            before = self._read_page(first)[:head] if head else b""
            after = self._read_page(end - 1)[-tail:] if tail else b""
            _write_all(self._content, before + data + after if head or tail else data, offset - head)
            self._set(first, end, CONTENT)

    def zero(self, offset: int, length: int) -> None:
        """Zeroes over a range; takes no room but at its ends. Raises as `write`."""
        self._check(offset, length)
        first, end = -(-offset // PAGE), (offset + length) // PAGE
        if offset + length == self.size:
            end = len(self._states)
        if first >= end:
            self.write(offset, bytes(length))
            return
        self.write(offset, bytes(first * PAGE - offset))
        with self._writing:
            self._set(first, end, ZEROES)
        if end * PAGE < offset + length:
            self.write(end * PAGE, bytes(offset + length - end * PAGE))

    def flush(self) -> None:
        """What was written is found again after a power cut, where the overlay is kept. Raises OSError."""
        if self._map < 0:
            return
        with self._writing:
            if self._sync_failed:
                raise OSError(errno.EIO, "an earlier flush failed")  # the kernel may have dropped what it could not write
            self._sync_failed = True
            os.fdatasync(self._content)
            for part in sorted(self._unsaved):
                states = self._states[part * _MAP_PART : (part + 1) * _MAP_PART]
                _write_all(self._map, states.tobytes(), HEADER_SIZE + part * _MAP_PART)
            os.fdatasync(self._map)
            self._unsaved.clear()
            self._sync_failed = False

    def close(self) -> None:
        """Flush, and close the files. Raises OSError."""
        try:
            self.flush()
        finally:
            self._close()

    def _close(self) -> None:
        os.close(self._content)
        if self._map >= 0:
            os.close(self._map)

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"{length} bytes at {offset} are outside a disk of {self.size} bytes")

    def _runs(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """(begin, end, state) in bytes of stretches of the range that are alike."""
        first, end = offset // PAGE, -(-(offset + length) // PAGE)
        with self._lock:
            states = self._states[first:end].copy()
        edges = [0, *(np.flatnonzero(np.diff(states)) + 1).tolist(), len(states)]
        for low, high in itertools.pairwise(edges):
            if high > low:
                begin, stop = max(offset, (first + low) * PAGE), min(offset + length, (first + high) * PAGE)
                yield begin, stop, int(states[low])

    def _part(self, at: int, end: int, state: int) -> bytes:
        if state == UNDERNEATH:
            return self._below.read(at, end - at)
        return _read_all(self._content, end - at, at) if state == CONTENT else bytes(end - at)

    def _read_page(self, page: int) -> bytes:
        begin = page * PAGE
        return self._part(begin, min(begin + PAGE, self.size), int(self._states[page]))

    def _set(self, first: int, end: int, state: int) -> None:
        with self._lock:
            self._states[first:end] = state
        if self._map >= 0:
            self._unsaved.update(range(first // _MAP_PART, -(-end // _MAP_PART)))

    def _take_up(self, path: str, header: OverlayHeader) -> None:
        """Begin a map, or read the one that is there. Raises OverlayUnusable, OSError."""
        if not os.fstat(self._map).st_size:
            _write_all(self._map, header.encode(), 0)
            os.fdatasync(self._map)
            return
        try:
            found = OverlayHeader.decode(os.pread(self._map, HEADER_SIZE, 0))
        except FormatError as error:
            raise OverlayUnusable(f"{path}: {error}. Nothing was written.") from error
        if found != header:
            raise OverlayUnusable(f"{path} lies over {found.over} ({found.size} bytes), not over {header.over}.")
        there = os.fstat(self._content).st_size
        for at in range(0, len(self._states), 1 << 20):
            states = np.frombuffer(os.pread(self._map, 1 << 20, HEADER_SIZE + at), np.uint8)[: len(self._states) - at]
            if (states > ZEROES).any():
                raise OverlayUnusable(f"{path}: a page in a state that there is not. Nothing was written.")
            written = np.flatnonzero(states == CONTENT)
            if len(written) and there < min((at + int(written[-1]) + 1) * PAGE, self.size):
                raise OverlayUnusable(f"{path}: its content, beside it, is missing or cut off. Nothing was written.")
            if states.any():
                self._states[at : at + len(states)] = states


def _lock(descriptor: int, path: str) -> None:
    """Two programs that write to one overlay would destroy it. Raises OverlayUnusable."""
    if not try_lock(descriptor):
        raise OverlayUnusable(f"{path} is in use by another program.")


def _read_all(descriptor: int, length: int, offset: int) -> bytes:
    parts = []
    while length:
        part = os.pread(descriptor, length, offset)
        if not part:
            parts.append(bytes(length))  # beyond the file's end: it is as long as what was written last
            break
        parts.append(part)
        length, offset = length - len(part), offset + len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
