# SPDX-License-Identifier: AGPL-3.0-or-later
"""A recorder between an NBD client and its server: what the client wrote where, when it asked, when it was answered.

It stands where a guest would feel its disk, and knows nothing of what is under test. QEMU's own `blklogwrites` was not taken:
it says in which order writes ended at one of QEMU's nodes. What may be in a state of several disks follows from who was
answered before whom was asked, and only who stands outside sees that. `tests/reference.py` reads the log.

Run as a process: `python -m tests.recorder SOCKET UPSTREAM LOG`; it ends in order by SIGTERM.
Wire format: github.com/NetworkBlockDevice/nbd, doc/proto.md.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
import threading
from contextlib import suppress
from hashlib import blake2b
from io import BufferedReader
from pathlib import Path
from time import monotonic_ns, sleep, time_ns
from typing import BinaryIO, NamedTuple

ENTRY = struct.Struct("<8sHHQIQQ")
"""Export, command, error, offset, length, asked and answered (ns since 1970; 0: never). Then a digest for each cell written."""
CELL = 4096
DIGEST = 16
WRITE, TRIM, ZEROES = 1, 4, 6
LATE = b"late"
"""The export of entries that say how late this machine woke somebody who slept: between asked and answered."""

_REQUEST = struct.Struct(">IHHQQI")
_SIMPLE = struct.Struct(">IQ")
_CHUNK = struct.Struct(">HHQI")
_READ, _DISC = 0, 2
_SIMPLE_MAGIC, _CHUNK_MAGIC = 0x67446698, 0x668E33EF
_OPT_EXPORT_NAME, _OPT_GO = 1, 7
_ACK, _ERROR = 1, 1 << 31


def digest(cell: bytes | memoryview) -> bytes:
    """What stands for the content of a cell."""
    return blake2b(cell, digest_size=DIGEST).digest()


class _Asked(NamedTuple):
    command: int
    offset: int
    length: int
    cells: bytes
    at_ns: int


class Log:
    """The log file, which all connections write."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def add(self, export: bytes, asked: _Asked, error: int, answered_ns: int) -> None:
        """An entry."""
        fields = (export, asked.command, error, asked.offset, asked.length, asked.at_ns, answered_ns)
        with self._lock:
            self._stream.write(ENTRY.pack(*fields) + asked.cells)


class Connection:
    """One client and its connection to the server: requests are taken along by one thread, replies by another."""

    def __init__(self, client: socket.socket, server: socket.socket, log: Log) -> None:
        self._client, self._server, self._log = client, server, log
        self._from_client = client.makefile("rb")
        self._from_server = server.makefile("rb")
        self._export = b""
        self._asked: dict[int, _Asked] = {}

    def run(self) -> None:
        """Until either side hangs up. What was never answered is in the log then, too."""
        replies = threading.Thread(target=self._replies)
        try:
            if self._handshake():
                replies.start()
                self._requests()
        except (OSError, EOFError):
            pass  # the other side sees it, and the client's exit code says it
        finally:
            for side in (self._client, self._server):
                with suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)
            if replies.ident is not None:
                replies.join()
            for asked in self._asked.values():
                if asked.command in (WRITE, ZEROES):
                    self._log.add(self._export, asked, 0, 0)
            self._client.close()
            self._server.close()

    def _handshake(self) -> bool:
        """Whether the client has chosen an export."""
        self._client.sendall(_exactly(self._from_server, 18))
        self._server.sendall(_exactly(self._from_client, 4))
        while True:
            option = _exactly(self._from_client, 16)
            number, length = struct.unpack(">8xII", option)
            data = _exactly(self._from_client, length)
            if number == _OPT_EXPORT_NAME:
                return False  # no client of the tests is that old
            self._server.sendall(option + data)
            kind = 0
            while kind != _ACK and not kind & _ERROR:
                reply = _exactly(self._from_server, 20)
                kind, count = struct.unpack(">12xII", reply)
                self._client.sendall(reply + _exactly(self._from_server, count))
            if number == _OPT_GO and kind == _ACK:
                self._export = data[4 : 4 + int.from_bytes(data[:4], "big")]
                return True

    def _requests(self) -> None:
        while header := self._from_client.read(_REQUEST.size):
            _, _, command, cookie, offset, length = _REQUEST.unpack(header)
            data, cells = b"", b""
            if command == WRITE:
                data = _exactly(self._from_client, length)
                cells = b"".join(digest(data[at : at + CELL]) for at in range(0, length, CELL))
            elif command == ZEROES:
                cells = digest(bytes(CELL)) * (length // CELL)
            self._asked[cookie] = _Asked(command, offset, length, cells, time_ns())
            self._server.sendall(header + data)
            if command == _DISC:
                del self._asked[cookie]

    def _replies(self) -> None:
        with suppress(OSError, EOFError):
            while start := self._from_server.read(4):
                magic = int.from_bytes(start, "big")
                if magic == _SIMPLE_MAGIC:
                    rest = _exactly(self._from_server, _SIMPLE.size)
                    error, cookie = _SIMPLE.unpack(rest)
                    last = True
                    length = self._asked[cookie].length if self._asked[cookie].command == _READ and not error else 0
                else:
                    rest = _exactly(self._from_server, _CHUNK.size)
                    flags, kind, cookie, length = _CHUNK.unpack(rest)
                    last, error = bool(flags & 1), kind >> 15
                data = _exactly(self._from_server, length)
                if last:
                    self._answered(cookie, error)
                self._client.sendall(start + rest + data)
        with suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)

    def _answered(self, cookie: int, error: int) -> None:
        asked = self._asked.pop(cookie)
        if error or asked.command in (WRITE, ZEROES, TRIM):
            self._log.add(self._export, asked, error, time_ns())


def _exactly(stream: BufferedReader, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data


def _measure_lateness(log: Log) -> None:
    """How late a thread of this process wakes: who shares its machine is as late as that, whatever it does."""
    while True:
        began, now = monotonic_ns(), time_ns()
        sleep(0.005)
        late = monotonic_ns() - began - 5_000_000
        if late > 5_000_000:
            log.add(LATE, _Asked(0, 0, 0, b"", now), 0, now + late)


def main(arguments: list[str]) -> int:
    """Listen, and connect each client to the server."""
    path, upstream, log_path = arguments
    sys.setswitchinterval(0.0005)
    with Path(log_path).open("wb") as stream, socket.socket(socket.AF_UNIX) as listening:
        log = Log(stream)
        listening.bind(path)
        listening.listen(16)

        def end(*_: object) -> None:
            stream.flush()
            os._exit(0)

        signal.signal(signal.SIGTERM, end)
        threading.Thread(target=_measure_lateness, args=(log,), daemon=True).start()
        while True:
            client, _ = listening.accept()
            server = socket.socket(socket.AF_UNIX)
            server.connect(upstream)
            threading.Thread(target=Connection(client, server, log).run, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
