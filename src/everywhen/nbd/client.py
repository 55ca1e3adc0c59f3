# SPDX-License-Identifier: AGPL-3.0-or-later
"""The client's side of one connection, without I/O: what to send, and what the answers mean.

It probes servers before QEMU is sent to them, copies disks out of QEMU's exports into the sink, reads dirty bitmaps, and writes
to images through QEMU's own server of images.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from everywhen.nbd import protocol as p

_LONGEST_REPLY = 64 << 20
_DESCRIPTOR = struct.Struct(">II")  # length, status flags


@dataclass(slots=True)
class Offer:
    """What the server told about the export: bytes, transmission flags, the largest request, and contexts by name."""

    size: int = 0
    flags: int = 0
    maximum: int = 32 << 20
    contexts: dict[str, int] = field(default_factory=dict)


class Status(NamedTuple):
    """One extent of a block status reply: bytes, and the context's flags."""

    length: int
    flags: int


class Reply(NamedTuple):
    """The whole answer to a request: an error number (0: none), what was read, extents by the context's number."""

    cookie: int
    error: int
    data: bytes
    extents: dict[int, list[Status]]


class Phase(Enum):
    """How far a connection has come."""

    GREETING = auto()
    STRUCTURED = auto()
    CONTEXTS = auto()
    GO = auto()
    READY = auto()


@dataclass(slots=True)
class _Pending:
    command: int
    offset: int
    length: int
    data: bytearray
    extents: dict[int, list[Status]] = field(default_factory=dict)
    covered: int = 0
    error: int = 0


class ClientSession:
    """One connection to the export `name`, with these meta contexts if the server has them."""

    def __init__(self, name: str, contexts: Sequence[str] = ()) -> None:
        self._name = name.encode()
        self._contexts = contexts
        self._input = bytearray()
        self._output: list[bytes] = []
        self._pending: dict[int, _Pending] = {}
        self._cookie = 0
        self._structured = self._described = False
        self.phase = Phase.GREETING
        self.offer = Offer()

    @property
    def ready(self) -> bool:
        """Whether requests may be sent."""
        return self.phase is Phase.READY

    def take_output(self) -> bytes:
        """What is to be sent now."""
        output, self._output = b"".join(self._output), []
        return output

    def read(self, offset: int, length: int) -> int:
        """Ask for bytes; gives the request's cookie."""
        return self._request(p.CMD_READ, 0, offset, length)

    def block_status(self, offset: int, length: int) -> int:
        """Ask for the extents of a range in all contexts; gives the request's cookie. The answer may cover less."""
        return self._request(p.CMD_BLOCK_STATUS, 0, offset, length)

    def write(self, offset: int, data: bytes) -> int:
        """Send bytes; gives the request's cookie."""
        cookie = self._request(p.CMD_WRITE, 0, offset, len(data))
        self._output.append(data)
        return cookie

    def write_zeroes(self, offset: int, length: int) -> int:
        """Have zeroes written; gives the request's cookie."""
        return self._request(p.CMD_WRITE_ZEROES, 0, offset, length)

    def flush(self) -> int:
        """Have all that was answered made durable; gives the request's cookie."""
        return self._request(p.CMD_FLUSH, 0, 0, 0)

    def disconnect(self) -> None:
        """Tell the server that this was all."""
        self._output.append(p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_DISC, 0, 0, 0))

    def receive(self, data: bytes | memoryview) -> list[Reply]:
        """Take what the server sent; gives the answers that are complete now. Raises ProtocolError."""
        self._input += data
        while self.phase is not Phase.READY and self._negotiate():
            pass
        replies: list[Reply] = []
        while self.phase is Phase.READY and self._answer(replies):
            pass
        return replies

    def _request(self, command: int, flags: int, offset: int, length: int) -> int:
        self._cookie += 1
        self._pending[self._cookie] = _Pending(command, offset, length, bytearray(length if command == p.CMD_READ else 0))
        self._output.append(p.REQUEST.pack(p.REQUEST_MAGIC, flags, command, self._cookie, offset, length))
        return self._cookie

    def _take(self, count: int) -> bytes:
        taken = bytes(self._input[:count])
        del self._input[:count]
        return taken

    def _option(self, option: int, data: bytes = b"") -> None:
        self._output.append(p.OPTION.pack(p.OPTION_MAGIC, option, len(data)) + data)

    def _negotiate(self) -> bool:
        """One step of the handshake; False when more bytes are needed."""
        if self.phase is Phase.GREETING:
            if len(self._input) < p.GREETING.size:
                return False
            magic, option_magic, flags = p.GREETING.unpack(self._take(p.GREETING.size))
            if (magic, option_magic) != (p.MAGIC, p.OPTION_MAGIC) or not flags & p.FIXED_NEWSTYLE:
                raise p.ProtocolError("no NBD server, or one of the old style")
            self._output.append(p.CLIENT_FLAGS.pack(p.FIXED_NEWSTYLE | flags & p.NO_ZEROES))
            self._option(p.OPT_STRUCTURED_REPLY)
            self.phase = Phase.STRUCTURED
            return True
        if len(self._input) < p.OPTION_REPLY.size:
            return False
        magic, option, kind, length = p.OPTION_REPLY.unpack_from(self._input)
        if magic != p.OPTION_REPLY_MAGIC or length > p.LONGEST_OPTION:
            raise p.ProtocolError(f"an option reply of {length} bytes")
        if len(self._input) < p.OPTION_REPLY.size + length:
            return False
        self._option_reply(option, kind, self._take(p.OPTION_REPLY.size + length)[p.OPTION_REPLY.size :])
        return True

    def _option_reply(self, option: int, kind: int, data: bytes) -> None:
        if self.phase is Phase.STRUCTURED and option == p.OPT_STRUCTURED_REPLY:
            self._structured = kind == p.REP_ACK
            if self._structured and self._contexts:
                self._option(p.OPT_SET_META_CONTEXT, self._queries())
                self.phase = Phase.CONTEXTS
            else:
                self._go()
        elif self.phase is Phase.CONTEXTS and option == p.OPT_SET_META_CONTEXT:
            if kind == p.REP_META_CONTEXT and len(data) > 4:
                name = data[4:].decode(errors="replace")
                if name not in self._contexts:
                    raise p.ProtocolError("a context that was not asked for")
                self.offer.contexts[name] = int.from_bytes(data[:4], "big")
            elif kind == p.REP_ACK or kind & p.REP_IS_ERROR:
                self._go()
            else:
                raise p.ProtocolError(f"reply {kind} to contexts")
        elif self.phase is Phase.GO and option == p.OPT_GO:
            self._told(kind, data)
        else:
            raise p.ProtocolError(f"a reply to option {option}, which was not asked")

    def _queries(self) -> bytes:
        name = len(self._name).to_bytes(4, "big") + self._name
        encoded = [context.encode() for context in self._contexts]
        return name + len(encoded).to_bytes(4, "big") + b"".join(len(one).to_bytes(4, "big") + one for one in encoded)

    def _go(self) -> None:
        wanted = struct.pack(">HH", 1, p.INFO_BLOCK_SIZE)
        self._option(p.OPT_GO, len(self._name).to_bytes(4, "big") + self._name + wanted)
        self.phase = Phase.GO

    def _told(self, kind: int, data: bytes) -> None:
        what = int.from_bytes(data[:2], "big") if kind == p.REP_INFO else -1
        if what == p.INFO_EXPORT and len(data) == p.INFO_EXPORT_DATA.size:
            _, self.offer.size, self.offer.flags = p.INFO_EXPORT_DATA.unpack(data)
            self._described = True
        elif what == p.INFO_BLOCK_SIZE and len(data) == p.INFO_BLOCK_SIZE_DATA.size:
            *_, self.offer.maximum = p.INFO_BLOCK_SIZE_DATA.unpack(data)
        elif kind == p.REP_ACK:
            if not self._described or not self.offer.maximum:
                raise p.ProtocolError("the server does not say how large the export is, or takes no requests")
            self.phase = Phase.READY
        elif kind & p.REP_IS_ERROR:
            raise p.ProtocolError(data.decode(errors="replace") or f"the server refuses the export (error {kind:#x})")

    def _answer(self, replies: list[Reply]) -> bool:
        """One message of the server; False when more bytes are needed."""
        magic = int.from_bytes(self._input[:4], "big") if len(self._input) >= 4 else None
        if magic is None:
            return False
        if magic == p.SIMPLE_REPLY_MAGIC:
            return self._simple(replies)
        if magic == p.CHUNK_MAGIC and self._structured:
            return self._chunk(replies)
        raise p.ProtocolError(f"reply magic {magic:#x}")

    def _simple(self, replies: list[Reply]) -> bool:
        if len(self._input) < p.SIMPLE_REPLY.size:
            return False
        _, error, cookie = p.SIMPLE_REPLY.unpack_from(self._input)
        pending = self._known(cookie)
        size = p.SIMPLE_REPLY.size + (len(pending.data) if not error else 0)
        if len(self._input) < size:
            return False
        data = self._take(size)[p.SIMPLE_REPLY.size :]
        del self._pending[cookie]
        replies.append(Reply(cookie, error, data, {}))
        return True

    def _chunk(self, replies: list[Reply]) -> bool:
        if len(self._input) < p.CHUNK.size:
            return False
        _, flags, kind, cookie, length = p.CHUNK.unpack_from(self._input)
        if length > _LONGEST_REPLY:
            raise p.ProtocolError(f"a reply of {length} bytes")
        if len(self._input) < p.CHUNK.size + length:
            return False
        pending = self._known(cookie)
        self._collect(pending, kind, memoryview(self._take(p.CHUNK.size + length))[p.CHUNK.size :])
        if flags & p.CHUNK_DONE:
            del self._pending[cookie]
            if pending.command == p.CMD_READ and not pending.error and pending.covered != pending.length:
                raise p.ProtocolError(f"{pending.covered} bytes where {pending.length} were asked for")
            replies.append(Reply(cookie, pending.error, bytes(pending.data), pending.extents))
        return True

    def _collect(self, pending: _Pending, kind: int, body: memoryview) -> None:
        if kind == p.CHUNK_NONE and not body:
            return
        if kind in (p.CHUNK_DATA, p.CHUNK_HOLE) and len(body) >= 8 and pending.command == p.CMD_READ:
            at = int.from_bytes(body[:8], "big") - pending.offset
            size = int.from_bytes(body[8:12], "big") if kind == p.CHUNK_HOLE else len(body) - 8
            if at < 0 or at + size > pending.length or (kind == p.CHUNK_HOLE and len(body) != 12):
                raise p.ProtocolError("data outside of what was asked for")
            if kind == p.CHUNK_DATA:
                pending.data[at : at + size] = body[8:]
            pending.covered += size
        elif kind == p.CHUNK_BLOCK_STATUS and len(body) >= 4 and not (len(body) - 4) % _DESCRIPTOR.size:
            context = int.from_bytes(body[:4], "big")
            if pending.command != p.CMD_BLOCK_STATUS or context not in self.offer.contexts.values():
                raise p.ProtocolError(f"extents in context {context}, which were not asked for")
            pending.extents[context] = [Status(*fields) for fields in _DESCRIPTOR.iter_unpack(body[4:])]
        elif kind & p.CHUNK_IS_ERROR and len(body) >= 4:
            pending.error = int.from_bytes(body[:4], "big") or p.EIO
        else:
            raise p.ProtocolError(f"a reply chunk of type {kind} with {len(body)} bytes")

    def _known(self, cookie: int) -> _Pending:
        pending = self._pending.get(cookie)
        if pending is None:
            raise p.ProtocolError(f"an answer to request {cookie}, which was not made")
        return pending
