# SPDX-License-Identifier: AGPL-3.0-or-later
"""The server's side of the handshake, without I/O: what a client may ask before it reads or writes (doc/proto.md).

Where TLS is wanted nothing is answered without it, so nothing can have been agreed on before.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

from everywhen.nbd import protocol as p
from everywhen.nbd.exports import Export, ExportList, NoExport

_CONTEXT = 1
"""Our number for base:allocation, the only context there is."""


class Phase(Enum):
    """How far a connection has come."""

    FLAGS = auto()
    OPTIONS = auto()
    STARTING_TLS = auto()
    TRANSMISSION = auto()
    ENDED = auto()


class Malformed(Exception):
    """An option whose data makes no sense. Its end is known, so the client is told, and may go on."""


class Asked(NamedTuple):
    """An export, and what is to be known about it: numbers of informations, or names of contexts."""

    name: str
    wanted: list[bytes]


def text_of(data: bytes) -> str:
    """A string of the protocol. Raises Malformed."""
    if len(data) > p.LONGEST_STRING or b"\0" in data:
        raise Malformed(f"a string of {len(data)} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Malformed("a string that is not UTF-8") from error


def _counted(data: bytes, at: int) -> tuple[bytes, int]:
    """The bytes behind their length (u32) at `at`, and where they end. Raises Malformed."""
    begin = at + 4
    end = begin + int.from_bytes(data[at:begin], "big")
    if begin > len(data) or end > len(data):
        raise Malformed("an option that is too short")
    return data[begin:end], end


def parse_info(data: bytes) -> Asked:
    """Of INFO and GO: length u32, name, count u16, that many u16. Raises Malformed."""
    name, at = _counted(data, 0)
    wanted = data[at + 2 :]
    if len(data) < at + 2 or len(wanted) != 2 * int.from_bytes(data[at : at + 2], "big"):
        raise Malformed("an option with a wrong count")
    return Asked(text_of(name), [wanted[begin : begin + 2] for begin in range(0, len(wanted), 2)])


def parse_contexts(data: bytes) -> Asked:
    """Of LIST_META_CONTEXT and SET_META_CONTEXT: length u32, name, count u32, that many lengths and names. Raises Malformed."""
    name, at = _counted(data, 0)
    count, at = int.from_bytes(data[at : at + 4], "big"), at + 4
    found: list[bytes] = []
    while at < len(data) and len(found) < count:
        one, at = _counted(data, at)
        found.append(one)
    if at != len(data) or len(found) != count:
        raise Malformed("an option with a wrong count")
    return Asked(text_of(name), found)


class Negotiation:
    """Takes options until the phase is none of its own."""

    def __init__(self, exports: ExportList, *, structured: bool, tls: bool) -> None:
        """`structured`: structured replies, and with them contexts, are offered; `tls`: nothing goes without TLS."""
        self._exports = exports
        self._offers_structured = structured
        self._offers_tls = tls
        self._encrypted = False
        self._no_zeroes = False
        self._described: str | None = None
        """The export for which the client has chosen base:allocation."""
        self._options = {
            p.OPT_LIST: self._list,
            p.OPT_INFO: self._describe,
            p.OPT_GO: self._describe,
            p.OPT_STARTTLS: self._start_tls,
        }
        if structured:
            self._options |= {
                p.OPT_STRUCTURED_REPLY: self._structure,
                p.OPT_LIST_META_CONTEXT: self._contexts,
                p.OPT_SET_META_CONTEXT: self._contexts,
            }
        self.phase = Phase.FLAGS
        self.output = [p.GREETING.pack(p.MAGIC, p.OPTION_MAGIC, p.FIXED_NEWSTYLE | p.NO_ZEROES)]
        self.name = ""
        self.export = Export(0, 0)
        self.structured = False
        self.context: int | None = None
        """The number of base:allocation, where the client has chosen it."""

    def flags(self, export: Export) -> int:
        """Transmission flags, with those that come from what was agreed on."""
        return export.flags | p.HAS_FLAGS | (p.SEND_DF if self.structured else 0)

    def take(self, received: bytearray) -> bool:
        """Take one message from the beginning of what came in; False when more bytes are needed. Raises ProtocolError."""
        if self.phase is Phase.FLAGS:
            if len(received) < p.CLIENT_FLAGS.size:
                return False
            self._client_flags(*p.CLIENT_FLAGS.unpack_from(received))
            del received[: p.CLIENT_FLAGS.size]
            return True
        if len(received) < p.OPTION.size:
            return False
        magic, option, length = p.OPTION.unpack_from(received)
        if magic != p.OPTION_MAGIC or length > p.LONGEST_OPTION:
            raise p.ProtocolError(f"option {option} with {length} bytes")
        end = p.OPTION.size + length
        if len(received) < end:
            return False
        data = bytes(received[p.OPTION.size : end])
        del received[:end]
        self._option(option, data)
        return True

    def encrypted(self) -> None:
        """TLS has begun."""
        self._encrypted = True
        self.phase = Phase.OPTIONS

    def _client_flags(self, flags: int) -> None:
        if flags & ~(p.FIXED_NEWSTYLE | p.NO_ZEROES) or not flags & p.FIXED_NEWSTYLE:
            raise p.ProtocolError(f"client flags {flags:#x}")
        self._no_zeroes = bool(flags & p.NO_ZEROES)
        self.phase = Phase.OPTIONS

    def _option(self, option: int, data: bytes) -> None:
        in_clear = self._offers_tls and not self._encrypted
        if option == p.OPT_EXPORT_NAME:
            if in_clear:
                raise p.ProtocolError("an export was chosen without TLS")  # this option has no reply that says so
            self._begin_without_options(data)
        elif option == p.OPT_ABORT:
            self._answer(option, p.REP_ACK)
            self.phase = Phase.ENDED
        elif in_clear and option != p.OPT_STARTTLS:
            self._refuse(option, p.REP_ERR_TLS_REQD, "this server is used with TLS only")
        elif taker := self._options.get(option):
            try:
                taker(option, data)
            except Malformed as error:
                self._refuse(option, p.REP_ERR_INVALID, str(error))
        else:
            self._answer(option, p.REP_ERR_UNSUP)

    def _begin_without_options(self, data: bytes) -> None:
        try:
            name = text_of(data)
            self._choose(name, self._exports.describe(name))
        except (Malformed, NoExport) as error:
            raise p.ProtocolError(str(error)) from error  # nor has this one
        self.output.append(p.EXPORT_NAME_DATA.pack(self.export.size, self.flags(self.export)))
        if not self._no_zeroes:
            self.output.append(bytes(124))

    def _list(self, option: int, data: bytes) -> None:
        if data:
            raise Malformed("a list has no data")
        try:
            names = [name.encode() for name in self._exports.names()]
        except NoExport as error:
            self._refuse(option, p.REP_ERR_POLICY, str(error))
            return
        for name in names:
            self._answer(option, p.REP_SERVER, len(name).to_bytes(4, "big") + name)
        self._answer(option, p.REP_ACK)

    def _start_tls(self, option: int, data: bytes) -> None:
        if not self._offers_tls:
            self._answer(option, p.REP_ERR_UNSUP)
        elif data or self._encrypted:
            raise Malformed("TLS begins once, and without data")
        else:
            self._answer(option, p.REP_ACK)
            self.phase = Phase.STARTING_TLS

    def _structure(self, option: int, data: bytes) -> None:
        if data:
            raise Malformed("structured replies are chosen without data")
        self.structured = True
        self._answer(option, p.REP_ACK)

    def _contexts(self, option: int, data: bytes) -> None:
        """A list tells all contexts where none is named, and those of a namespace; what is set is named in full."""
        lists = option == p.OPT_LIST_META_CONTEXT
        if not lists:
            self._described = None
        name, queries = parse_contexts(data)
        if not self.structured:
            raise Malformed("contexts go with structured replies only")
        if self._found(option, name) is None:
            return
        matching = {p.ALLOCATION.encode(), *([b"base:"] if lists else [])}
        if not matching.isdisjoint(queries) or (lists and not queries):
            self._answer(option, p.REP_META_CONTEXT, _CONTEXT.to_bytes(4, "big") + p.ALLOCATION.encode())
            if not lists:
                self._described = name
        self._answer(option, p.REP_ACK)

    def _describe(self, option: int, data: bytes) -> None:
        """Size and block sizes are told to all; the description to who asks."""
        name, wanted = parse_info(data)
        export = self._found(option, name)
        if export is None:
            return
        self._answer(option, p.REP_INFO, p.INFO_EXPORT_DATA.pack(p.INFO_EXPORT, export.size, self.flags(export)))
        number = p.INFO_DESCRIPTION.to_bytes(2, "big")
        if export.description and number in wanted:
            self._answer(option, p.REP_INFO, number + p.short(export.description))
        sizes = (export.minimum, export.preferred, export.maximum)
        self._answer(option, p.REP_INFO, p.INFO_BLOCK_SIZE_DATA.pack(p.INFO_BLOCK_SIZE, *sizes))
        self._answer(option, p.REP_ACK)
        if option == p.OPT_GO:
            self._choose(name, export)

    def _choose(self, name: str, export: Export) -> None:
        self.name, self.export, self.phase = name, export, Phase.TRANSMISSION
        self.context = _CONTEXT if self._described == name else None

    def _found(self, option: int, name: str) -> Export | None:
        """The export that is asked about; None when the client was told that there is none."""
        try:
            return self._exports.describe(name)
        except NoExport as error:
            self._refuse(option, p.REP_ERR_UNKNOWN, str(error))
            return None

    def _refuse(self, option: int, kind: int, why: str) -> None:
        self._answer(option, kind, p.short(why))

    def _answer(self, option: int, kind: int, data: bytes = b"") -> None:
        self.output += (p.OPTION_REPLY.pack(p.OPTION_REPLY_MAGIC, option, kind, len(data)), data)
