# SPDX-License-Identifier: AGPL-3.0-or-later
"""Sorted runs: immutable tables of (64-bit key, fixed-size record), in memory or mapped from a file.

Why sorted files and no database: docs/decisions/0002-index-of-sorted-runs.md. Design 4.9.8, target P6. A file, in the
machine's own byte order (a cache never leaves its machine; the magic number tells the order):

    offset              size                  content
    0                   4096                  header, see _HEADER; zeroes
    4096                capacity * 8          keys, ascending; the unused end is a hole
    next multiple of 4096   capacity * record size    records, in the order of the keys
    next multiple of 4096   4 * (2**bits + 1)     starts: row of the first key of each bucket (upper `bits` bits of a key)
    then                4 each                CRC-32 of every 4096 bytes of the keys, then of the records
    then                4                     CRC-32 of starts and checksums

Starts and checksums are read when a run is opened (0.23 bytes an entry). A block of keys or records is checked when it
is first used, so opening 6 GB takes milliseconds and yet no damaged byte ever becomes an answer.
"""

from __future__ import annotations

import bisect
import io
import mmap
import os
import struct
import threading
import weakref
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Keys: TypeAlias = NDArray[np.uint64]
Records: TypeAlias = NDArray[np.void]
Rows: TypeAlias = NDArray[np.int64]

_MAGIC = 0x0001_6E75_7252_7745  # "EwRrun", version 1; reads differently in the other byte order
_HEADER = struct.Struct("=QIIQQI")  # magic, record size, bits, count, capacity, CRC-32 of all before
BLOCK = 4096
_KEY = 8
_ROWS_PER_BUCKET = 16  # to 32: four or five steps of bisection, 4 bytes for at least 16 entries
_MAX_ROWS = (1 << 32) - 1


class CacheDamaged(Exception):
    """A file of the cache is not what was written. Nothing is lost: throw the cache away and build it again."""


class _Blocks:
    """One column of a mapped file, whose 4096-byte blocks are each checked once, when first used. Thread-safe."""

    def __init__(self, name: str, offset: int, column: memoryview, crcs: NDArray[np.uint32]) -> None:
        self.name, self.offset, self.column, self._crcs = name, offset, column, crcs
        self._seen = np.zeros(len(crcs), dtype=np.bool_)

    def ensure(self, first_byte: Rows, last_byte: Rows) -> None:
        """Check the blocks from each `first_byte` to the `last_byte` (inclusive) beside it. Raises CacheDamaged."""
        first, last = first_byte >> 12, last_byte >> 12
        if (self._seen.take(first) & self._seen.take(last)).all() and not (last - first > 1).any():
            return
        for begin, end in zip(first.tolist(), last.tolist(), strict=True):
            self.ensure_range(begin * BLOCK, end * BLOCK + 1)

    def ensure_range(self, start: int, stop: int) -> None:
        """Check the blocks that bytes `start` to `stop` (exclusive) touch. Raises CacheDamaged."""
        for block in range(start >> 12, (stop + BLOCK - 1) >> 12):
            if not self._seen[block]:
                self.compare(block, self.column[block * BLOCK : (block + 1) * BLOCK])
                self._seen[block] = True

    def compare(self, block: int, content: memoryview) -> None:
        """Raise CacheDamaged unless `content` is what block number `block` was written as."""
        if zlib.crc32(content) != self._crcs[block]:
            raise CacheDamaged(f"{self.name}: block {block} of a column has a wrong checksum")


@dataclass(frozen=True, slots=True)
class _Mapped:
    """What a run that is a file has beyond its columns."""

    file: io.FileIO
    keys: _Blocks
    records: _Blocks


class Run:
    """One sorted run. Immutable; all methods may be called from several threads at once.

    `keys` and `records` are the whole columns; what is taken from them directly is unchecked when the run is a file.
    """

    def __init__(self, keys: Keys, records: Records, starts: NDArray[np.uint32], mapped: _Mapped | None = None) -> None:
        self.keys, self.records, self.count = keys, records, len(keys)
        self._starts = starts
        self._shift = 64 - ((len(starts) - 1).bit_length() - 1)
        self._key_view = keys.data
        self._raw = records.view(np.uint8).data if self.count else memoryview(b"")
        self._size = records.dtype.itemsize
        self._mapped = mapped
        self._file_lock = threading.Lock()

    @classmethod
    def in_memory(cls, keys: Keys, records: Records) -> Run:
        """A run of arrays that the caller has sorted by key and changes no more."""
        bits = _bucket_bits(len(keys))
        counts = np.bincount((keys >> np.uint64(64 - bits)).astype(np.int64), minlength=1 << bits)
        return cls(keys, records, _starts(counts))

    @classmethod
    def open(cls, path: str, dtype: np.dtype[np.void]) -> Run:
        """Map the run file `path`, made of records of `dtype`. Raises CacheDamaged, also when there is no such file."""
        name = os.path.basename(path)
        try:
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except FileNotFoundError:
            raise CacheDamaged(f"{name}: missing") from None
        try:
            if os.fstat(descriptor).st_size < BLOCK:
                raise CacheDamaged(f"{name}: shorter than a header")
            mapping = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
            if hasattr(mmap, "MADV_RANDOM"):
                mapping.madvise(mmap.MADV_RANDOM)  # a lookup wants 4 KiB, not the 128 KiB around it
            run = cls._parse(name, memoryview(mapping), dtype, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        weakref.finalize(run, os.close, descriptor)
        return run

    @classmethod
    def _parse(cls, name: str, content: memoryview, dtype: np.dtype[np.void], descriptor: int) -> Run:
        magic, size, bits, count, capacity, crc = _HEADER.unpack_from(content)
        if magic != _MAGIC or zlib.crc32(content[: _HEADER.size - 4]) != crc:
            raise CacheDamaged(f"{name}: its header is damaged or of another version")
        if size != dtype.itemsize:
            raise CacheDamaged(f"{name}: its records have {size} bytes instead of {dtype.itemsize}")
        records_at, tables_at = _layout(capacity, size)
        blocks = [_blocks(count * _KEY), _blocks(count * size)]
        lengths = [(1 << bits) + 1, *blocks, 1]
        if len(content) != tables_at + 4 * sum(lengths):
            raise CacheDamaged(f"{name}: {len(content)} bytes long instead of {tables_at + 4 * sum(lengths)}")
        tables = np.frombuffer(content, dtype=np.uint32, offset=tables_at).copy()
        if zlib.crc32(tables[:-1].data) != tables[-1]:
            raise CacheDamaged(f"{name}: its tables have a wrong checksum")
        starts, key_crcs, record_crcs, _ = np.split(tables, np.cumsum(lengths)[:-1])
        mapped = _Mapped(
            io.FileIO(descriptor, closefd=False),
            _Blocks(name, BLOCK, content[BLOCK : BLOCK + count * _KEY], key_crcs),
            _Blocks(name, records_at, content[records_at : records_at + count * size], record_crcs),
        )
        keys = np.frombuffer(mapped.keys.column, dtype=np.uint64)
        return cls(keys, np.frombuffer(mapped.records.column, dtype=dtype), starts, mapped)

    @property
    def in_memory_only(self) -> bool:
        """Whether what `read` gives is the run itself, not to be changed."""
        return self._mapped is None

    def matches(self, wanted: Keys) -> Iterator[tuple[Rows, Rows]]:
        """Where `wanted` occurs: pairs (positions in `wanted`, rows of this run), each row once, in few steps.

        A key with several rows comes in as many steps. Raises CacheDamaged.
        """
        bucket = (wanted >> np.uint64(self._shift)).astype(np.int64)
        low = self._starts.take(bucket).astype(np.int64)
        limit = self._starts.take(bucket + 1).astype(np.int64)
        inside = np.nonzero(low < limit)[0]
        if len(inside) < len(wanted):
            wanted, low, limit = wanted.take(inside), low.take(inside), limit.take(inside)
        if not len(inside):
            return
        if self._mapped:
            self._mapped.keys.ensure(low * _KEY, limit * _KEY - 1)
        keys, high = self.keys, limit
        for _ in range(int((limit - low).max()).bit_length()):
            middle = (low + high) >> 1
            less = keys.take(middle, mode="clip") < wanted
            low = np.where(less, middle + 1, low)
            high = np.where(less, high, middle)
        row = low  # a finished search may have stepped past its limit, by a key of the next bucket: no match there
        while True:
            hit = np.nonzero((row < limit) & (keys.take(row, mode="clip") == wanted))[0]
            if not len(hit):
                return
            wanted, row, limit, inside = wanted.take(hit), row.take(hit), limit.take(hit), inside.take(hit)
            yield inside, row
            row = row + 1

    def take(self, rows: Rows) -> Records:
        """The records of `rows`, checked. Raises CacheDamaged."""
        if self._mapped:
            self._mapped.records.ensure(rows * self._size, (rows + 1) * self._size - 1)
        return self.records.take(rows)

    def find_one(self, key: int) -> Iterator[memoryview]:
        """The raw records of one key. Without numpy: 1 to 2 µs where `matches` takes 30. Raises CacheDamaged."""
        bucket = key >> self._shift
        low, limit = int(self._starts[bucket]), int(self._starts[bucket + 1])
        if low == limit:
            return
        if self._mapped:
            self._mapped.keys.ensure_range(low * _KEY, limit * _KEY)
        row = bisect.bisect_left(self._key_view, key, low, limit)
        while row < limit and self._key_view[row] == key:
            begin, end = row * self._size, (row + 1) * self._size
            if self._mapped:
                self._mapped.records.ensure_range(begin, end)
            yield self._raw[begin:end]
            row += 1

    def end_of(self, key: int, start: int) -> int:
        """The row behind the last one with a key up to `key`, from row `start` on; unchecked, `read` will check."""
        return bisect.bisect_right(self._key_view, key, start, self.count)

    def read(self, start: int, stop: int) -> tuple[Keys, Records]:
        """Rows `start` to `stop`, read in sequence and checked, not kept in the mapping. Raises CacheDamaged."""
        if self._mapped is None:
            return self.keys[start:stop], self.records[start:stop]
        file, size = self._mapped.file, self._size
        with self._file_lock:
            keys = _read_column(file, self._mapped.keys, start * _KEY, stop * _KEY)
            records = _read_column(file, self._mapped.records, start * size, stop * size)
        return keys.view(np.uint64), records.view(self.records.dtype)


def _read_column(file: io.FileIO, blocks: _Blocks, start: int, stop: int) -> NDArray[np.uint8]:
    if start >= stop:
        return np.empty(0, dtype=np.uint8)
    first = start // BLOCK * BLOCK
    content = np.empty(min(_blocks(stop) * BLOCK, len(blocks.column)) - first, dtype=np.uint8)
    view = content.data
    file.seek(blocks.offset + first)
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            raise CacheDamaged(f"{blocks.name}: it became shorter while it was in use")
        done += count
    for begin in range(0, len(view), BLOCK):
        blocks.compare((first + begin) // BLOCK, view[begin : begin + BLOCK])
    return content[start - first : stop - first]


class RunWriter:
    """Writes a run file in one pass: `append` in the order of the keys, then `finish`. Not durable: it is a cache.

    `capacity` is the most rows there will be; the file is sparse where there are fewer.
    """

    def __init__(self, path: str, dtype: np.dtype[np.void], capacity: int) -> None:
        if capacity > _MAX_ROWS:
            raise ValueError(f"a run of {capacity} rows: at most {_MAX_ROWS} fit")
        self._dtype, self._capacity, self.count = dtype, capacity, 0
        self._bits = _bucket_bits(capacity)
        self._counts = np.zeros(1 << self._bits, dtype=np.int64)
        records_at, self._tables_at = _layout(capacity, dtype.itemsize)
        self._file = open(path, "w+b", buffering=0)  # noqa: SIM115 (closed by close)
        self.descriptor = self._file.fileno()
        self._columns = (_ColumnWriter(self._file, BLOCK), _ColumnWriter(self._file, records_at))

    def append(self, keys: Keys, records: Records) -> None:
        """Rows that follow those appended before."""
        if not len(keys):
            return
        bucket = (keys >> np.uint64(64 - self._bits)).astype(np.int64)
        first = int(bucket[0])
        counts = np.bincount(bucket - first)
        self._counts[first : first + len(counts)] += counts
        self.count += len(keys)
        self._columns[0].append(np.ascontiguousarray(keys).data.cast("B"))
        self._columns[1].append(np.ascontiguousarray(records).view(np.uint8).data)

    def finish(self) -> None:
        """Write what is left, and the header last; then close the file."""
        crcs = [crc for column in self._columns for crc in column.finish()]
        tables = np.concatenate((_starts(self._counts), np.array(crcs, dtype=np.uint32)))
        self._file.seek(self._tables_at)
        _write(self._file, tables.data.cast("B"))
        _write(self._file, memoryview(struct.pack("=I", zlib.crc32(tables.data))))
        header = _HEADER.pack(_MAGIC, self._dtype.itemsize, self._bits, self.count, self._capacity, 0)[:-4]
        self._file.seek(0)
        _write(self._file, memoryview(header + struct.pack("=I", zlib.crc32(header))))
        self.close()

    def close(self) -> None:
        """Close the file, finished or not."""
        self._file.close()


class _ColumnWriter:
    """Appends bytes at a growing position of a file and keeps the CRC of each block."""

    def __init__(self, file: io.FileIO, position: int) -> None:
        self._file, self._position = file, position
        self._rest = b""
        self._crcs: list[int] = []

    def append(self, content: memoryview) -> None:
        if self._rest:
            missing = BLOCK - len(self._rest)
            self._rest += bytes(content[:missing])
            content = content[missing:]
            if len(self._rest) < BLOCK:
                return
            self._put(memoryview(self._rest))
        whole = len(content) // BLOCK * BLOCK
        self._put(content[:whole])
        self._rest = bytes(content[whole:])

    def finish(self) -> list[int]:
        self._put(memoryview(self._rest))
        return self._crcs

    def _put(self, content: memoryview) -> None:
        self._crcs.extend(zlib.crc32(content[i : i + BLOCK]) for i in range(0, len(content), BLOCK))
        self._file.seek(self._position)
        _write(self._file, content)
        self._position += len(content)


def _write(file: io.FileIO, content: memoryview) -> None:
    while len(content):
        content = content[file.write(content) or 0 :]


def _blocks(size: int) -> int:
    return (size + BLOCK - 1) // BLOCK


def _layout(capacity: int, record_size: int) -> tuple[int, int]:
    """Offsets of the records and of the tables."""
    records_at = BLOCK + _blocks(capacity * _KEY) * BLOCK
    return records_at, records_at + _blocks(capacity * record_size) * BLOCK


def _bucket_bits(count: int) -> int:
    return max(1, (count // _ROWS_PER_BUCKET).bit_length() - 1)


def _starts(counts: NDArray[np.int64]) -> NDArray[np.uint32]:
    return np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(counts))).astype(np.uint32)
