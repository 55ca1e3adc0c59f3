# SPDX-License-Identifier: AGPL-3.0-or-later
"""The server's side of one connection, without I/O: bytes in, requests out; replies in, bytes out.

Simple replies only: who asks for structured ones is told that there are none, and goes on without (proto.md). Requests are
given out in the order in which they came; replies may be in any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from everywhen.nbd import protocol as p


@dataclass(frozen=True, slots=True)
class Export:
    """What a client is offered: size in bytes, transmission flags (`protocol.SEND_…`), and sizes of requests in bytes."""

    size: int
    flags: int
    minimum: int = 1
    preferred: int = 4096
    maximum: int = 32 << 20


class Request(NamedTuple):
    """A command of the client, inside the export; `data` is what is to be written, else empty."""

    command: int
    flags: int
    cookie: int
    offset: int
    length: int
    data: bytes


class Phase(Enum):
    """How far a connection has come."""

    FLAGS = auto()
    OPTIONS = auto()
    TRANSMISSION = auto()
    ENDED = auto()


class ServerSession:
    """One connection. After ProtocolError, or in the phase ENDED once the output is sent, the connection is to be closed."""

    def __init__(self, exports: Mapping[str, Export]) -> None:
        self._exports = exports
        self._input = bytearray()
        self._output = [p.GREETING.pack(p.MAGIC, p.OPTION_MAGIC, p.FIXED_NEWSTYLE | p.NO_ZEROES)]
        self._no_zeroes = False
        self.phase = Phase.FLAGS
        self.export = Export(0, 0)
        """What the client has chosen, in transmission."""
        self.name = ""

    def take_output(self) -> bytes:
        """What is to be sent now."""
        output, self._output = b"".join(self._output), []
        return output

    def receive(self, data: bytes | memoryview) -> list[Request]:
        """Take what the client sent; gives the requests that are complete now. Raises ProtocolError."""
        if self._input or self.phase is not Phase.TRANSMISSION:
            return self._receive_after_what_is_left(data)
        view = memoryview(data)
        requests, end = self._requests(view)
        if end < len(view):
            self._input += view[end:]
        return requests

    def _receive_after_what_is_left(self, data: bytes | memoryview) -> list[Request]:
        self._input += data
        while self.phase in (Phase.FLAGS, Phase.OPTIONS) and self._negotiate():
            pass
        if self.phase is not Phase.TRANSMISSION:
            return []
        with memoryview(self._input) as view:
            requests, end = self._requests(view)
        del self._input[:end]
        return requests

    def reply(self, cookie: int, error: int = 0, data: bytes = b"") -> None:
        """Answer a request: with an error number of the protocol, or with what a read asked for."""
        self._output.append(p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, error, cookie))
        if data:
            self._output.append(data)

    def _take(self, count: int) -> bytes:
        taken = bytes(self._input[:count])
        del self._input[:count]
        return taken

    def _negotiate(self) -> bool:
        """One step of the handshake; False when more bytes are needed."""
        if self.phase is Phase.FLAGS:
            if len(self._input) < p.CLIENT_FLAGS.size:
                return False
            (flags,) = p.CLIENT_FLAGS.unpack(self._take(p.CLIENT_FLAGS.size))
            if flags & ~(p.FIXED_NEWSTYLE | p.NO_ZEROES) or not flags & p.FIXED_NEWSTYLE:
                raise p.ProtocolError(f"client flags {flags:#x}")
            self._no_zeroes = bool(flags & p.NO_ZEROES)
            self.phase = Phase.OPTIONS
            return True
        if len(self._input) < p.OPTION.size:
            return False
        magic, option, length = p.OPTION.unpack_from(self._input)
        if magic != p.OPTION_MAGIC or length > p.LONGEST_OPTION:
            raise p.ProtocolError(f"option {option} with {length} bytes")
        if len(self._input) < p.OPTION.size + length:
            return False
        self._option(option, self._take(p.OPTION.size + length)[p.OPTION.size :])
        return self.phase is Phase.OPTIONS

    def _option(self, option: int, data: bytes) -> None:
        if option == p.OPT_EXPORT_NAME:
            self._begin_without_options(data)
        elif option == p.OPT_ABORT:
            self._answer(option, p.REP_ACK)
            self.phase = Phase.ENDED
        elif option == p.OPT_LIST and not data:
            for name in self._exports:
                encoded = name.encode()
                self._answer(option, p.REP_SERVER, len(encoded).to_bytes(4, "big") + encoded)
            self._answer(option, p.REP_ACK)
        elif option in (p.OPT_INFO, p.OPT_GO):
            self._describe(option, data)
        else:
            self._answer(option, p.REP_ERR_INVALID if option == p.OPT_LIST else p.REP_ERR_UNSUP)

    def _begin_without_options(self, data: bytes) -> None:
        name = data.decode(errors="replace")
        if name not in self._exports:
            raise p.ProtocolError(f'no export "{name}"')  # this option has no reply that says so
        self.name, self.export = name, self._exports[name]
        self._output.append(p.EXPORT_NAME_DATA.pack(self.export.size, self.export.flags | p.HAS_FLAGS))
        if not self._no_zeroes:
            self._output.append(bytes(124))
        self.phase = Phase.TRANSMISSION

    def _describe(self, option: int, data: bytes) -> None:
        """Length u32, name, count u16, that many u16: what the client wants to know. It is told size and block sizes."""
        length = int.from_bytes(data[:4], "big")
        name, wanted = data[4 : 4 + length], data[4 + length :]
        if len(data) < 6 or len(name) < length or len(wanted) < 2 or len(wanted) != 2 + 2 * int.from_bytes(wanted[:2], "big"):
            self._answer(option, p.REP_ERR_INVALID)
            return
        export = self._exports.get(name.decode(errors="replace"))
        if export is None:
            self._answer(option, p.REP_ERR_UNKNOWN)
            return
        self._answer(option, p.REP_INFO, p.INFO_EXPORT_DATA.pack(p.INFO_EXPORT, export.size, export.flags | p.HAS_FLAGS))
        sizes = (export.minimum, export.preferred, export.maximum)
        self._answer(option, p.REP_INFO, p.INFO_BLOCK_SIZE_DATA.pack(p.INFO_BLOCK_SIZE, *sizes))
        self._answer(option, p.REP_ACK)
        if option == p.OPT_GO:
            self.name, self.export, self.phase = name.decode(), export, Phase.TRANSMISSION

    def _answer(self, option: int, kind: int, data: bytes = b"") -> None:
        self._output += (p.OPTION_REPLY.pack(p.OPTION_REPLY_MAGIC, option, kind, len(data)), data)

    def _requests(self, view: memoryview) -> tuple[list[Request], int]:
        """The requests that are complete at the beginning of what came in, and where the first one begins that is not."""
        requests: list[Request] = []
        begin, size = 0, len(view)
        unpack, header = p.REQUEST.unpack_from, p.REQUEST.size
        writable = -1 if self.export.flags & p.READ_ONLY else self.export.size
        while (start := begin + header) <= size:
            magic, flags, command, cookie, offset, length = unpack(view, begin)
            if magic != p.REQUEST_MAGIC:
                raise p.ProtocolError(f"request magic {magic:#x}")
            end = start
            if command == p.CMD_WRITE:
                if length > self.export.maximum:
                    raise p.ProtocolError(f"a write of {length} bytes where at most {self.export.maximum} were allowed")
                end += length
                if end > size:
                    break
            begin = end
            request = Request(command, flags, cookie, offset, length, bytes(view[start:end]))
            if command == p.CMD_WRITE and offset + length <= writable:
                requests.append(request)  # nearly all are of this kind
            elif command == p.CMD_DISC:
                self.phase = Phase.ENDED
                break
            elif error := self._refused(request):
                self.reply(cookie, error)
            else:
                requests.append(request)
        return requests, begin

    def _refused(self, request: Request) -> int:
        """The error number for a request that this export does not take, else 0."""
        flags = self.export.flags
        inside = request.offset + request.length <= self.export.size
        offered = {
            p.CMD_READ: True,
            p.CMD_WRITE: not flags & p.READ_ONLY,
            p.CMD_FLUSH: bool(flags & p.SEND_FLUSH),
            p.CMD_TRIM: bool(flags & p.SEND_TRIM) and not flags & p.READ_ONLY,
            p.CMD_WRITE_ZEROES: bool(flags & p.SEND_WRITE_ZEROES) and not flags & p.READ_ONLY,
        }
        if request.command not in offered:
            return p.EINVAL
        if not offered[request.command]:
            return p.EPERM if flags & p.READ_ONLY else p.EINVAL
        if not inside:
            return p.EINVAL if request.command == p.CMD_READ else p.ENOSPC
        if request.command == p.CMD_READ and request.length > self.export.maximum:
            return p.EINVAL
        return 0
