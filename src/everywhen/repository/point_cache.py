# SPDX-License-Identifier: AGPL-3.0-or-later
"""The JSON of recovery points seen before, kept on this machine: a listing then reads only what is new.

An SQLite file that may be deleted at any time (I-7), and that nothing is believed of without its checksum: SQLite has none
of its own, and after a power cut, without fsync, pages may be missing or old. A row whose checksum is wrong counts as not
there, and a file with such a row, or one that SQLite cannot read, is deleted: the next to open it begins it anew. Where it
cannot be opened or written, work goes on without it.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from blake3 import blake3

_NOT_THE_FILE: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    }
)
"""Errors for which the content is not to blame: what is there stays."""

T = TypeVar("T")


class PointCache:
    """By id and stamp, which is what a listing says of the object: a tombstone may have taken the place of a point.

    Safe to use from several threads and processes. No method raises because of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        with suppress(sqlite3.OperationalError):  # there is no way to the file, or no room for it
            self._database = sqlite3.connect(path, timeout=30, check_same_thread=False, isolation_level=None)
            self._database.text_factory = bytes  # one damaged bit makes a text of a blob
        self._tried(self._prepare, None)

    @staticmethod
    def _prepare(database: sqlite3.Connection) -> None:
        database.execute("PRAGMA synchronous = OFF")
        database.execute("DROP TABLE IF EXISTS seen")  # of earlier programs, without checksums
        database.execute(
            "CREATE TABLE IF NOT EXISTS points (id BLOB PRIMARY KEY, stamp BLOB, plain BLOB, checksum BLOB) WITHOUT ROWID"
        )

    def all(self) -> dict[str, tuple[str, bytes]]:
        """(stamp, JSON) by id. One question for all: 10,000 single ones take half a second."""
        select = "SELECT id, stamp, plain, checksum FROM points"
        rows: list[tuple[bytes, bytes, bytes, bytes]] = self._tried(lambda file: file.execute(select).fetchall(), [])
        found = {
            row[0].decode(): (row[1].decode(), row[2])
            for row in rows
            # Damage makes numbers of bytes, too.
            if all(isinstance(value, bytes) for value in row) and _checksum(row[0], row[1], row[2]) == row[3]
        }
        if len(found) < len(rows):  # also a key in the wrong place, which hides what is put there
            with self._lock:
                self._discard()
        return found

    def put(self, point: str, stamp: str, plain: bytes) -> None:
        """Remember a point's JSON."""
        key, when = point.encode(), stamp.encode()
        row = (key, when, plain, _checksum(key, when, plain))
        self._tried(lambda database: database.execute("INSERT OR REPLACE INTO points VALUES (?, ?, ?, ?)", row), None)

    def keep_only(self, points: set[str]) -> None:
        """Forget points that are no longer in the repository."""
        kept = {point.encode() for point in points}

        def forget(database: sqlite3.Connection) -> None:
            gone = [row for row in database.execute("SELECT id FROM points") if row[0] not in kept]
            database.executemany("DELETE FROM points WHERE id = ?", gone)

        self._tried(forget, None)

    def close(self) -> None:
        """Close the file. Nothing is remembered afterwards."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _tried(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """What `work` gives; `otherwise` where the file does not allow it. A damaged file is gone then."""
        with self._lock:
            if self._database is None:
                return otherwise
            try:
                return work(self._database)
            except UnicodeDecodeError:  # SQLite's complaint quotes the damaged file
                self._discard()
            except sqlite3.Error as error:
                if error.sqlite_errorcode & 0xFF not in _NOT_THE_FILE:
                    self._discard()
            return otherwise

    def _discard(self) -> None:
        self._close()
        with suppress(OSError):  # on Windows another process may have it open; it stays unbelieved
            self._path.unlink(missing_ok=True)


def _checksum(point: bytes, stamp: bytes, plain: bytes) -> bytes:
    return blake3(b"\0".join((point, stamp, plain))).digest()
