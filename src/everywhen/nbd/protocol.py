# SPDX-License-Identifier: AGPL-3.0-or-later
"""Numbers and layouts of NBD (github.com/NetworkBlockDevice/nbd, doc/proto.md, fixed newstyle). All integers big-endian.

| message | from | layout |
|---|---|---|
| greeting | server | `NBDMAGIC`, `IHAVEOPT`, u16 handshake flags |
| client flags | client | u32 |
| option | client | `IHAVEOPT`, u32 option, u32 length, data |
| option reply | server | u64 0x3e889045565a9, u32 option, u32 type, u32 length, data |
| request | client | u32 0x25609513, u16 flags, u16 command, u64 cookie, u64 offset, u32 length, data of a write |
| simple reply | server | u32 0x67446698, u32 error, u64 cookie, data of a read |
| chunk of a structured reply | server | u32 0x668e33ef, u16 flags, u16 type, u64 cookie, u32 length, data |

Data of a chunk, by its type: u64 offset and content · hole: u64 offset, u32 bytes · block status: u32 context, then for each
extent u32 bytes and u32 flags · error: u32 error, u16 length, that many bytes of text.
"""

from __future__ import annotations

import struct

GREETING = struct.Struct(">8s8sH")
MAGIC, OPTION_MAGIC = b"NBDMAGIC", b"IHAVEOPT"
FIXED_NEWSTYLE, NO_ZEROES = 1, 2

CLIENT_FLAGS = struct.Struct(">I")
OPTION = struct.Struct(">8sII")
OPTION_REPLY = struct.Struct(">QIII")
OPTION_REPLY_MAGIC = 0x0003E889045565A9
LONGEST_OPTION = 64 << 10
"""Bytes of an option's data that anybody needs; a server may hang up on more (proto.md asks for 4 KiB of name at least)."""

LONGEST_STRING = 4096
"""Bytes of a name or a text."""

OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_STARTTLS, OPT_INFO, OPT_GO = 1, 2, 3, 5, 6, 7
OPT_STRUCTURED_REPLY, OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT = 8, 9, 10

REP_ACK, REP_SERVER, REP_INFO, REP_META_CONTEXT = 1, 2, 3, 4
REP_IS_ERROR = 1 << 31
REP_ERR_UNSUP, REP_ERR_POLICY, REP_ERR_INVALID = REP_IS_ERROR + 1, REP_IS_ERROR + 2, REP_IS_ERROR + 3
REP_ERR_TLS_REQD, REP_ERR_UNKNOWN = REP_IS_ERROR + 5, REP_IS_ERROR + 6

INFO_EXPORT, INFO_DESCRIPTION, INFO_BLOCK_SIZE = 0, 2, 3
INFO_EXPORT_DATA = struct.Struct(">HQH")  # kind, bytes, transmission flags
INFO_BLOCK_SIZE_DATA = struct.Struct(">HIII")  # kind, minimum, preferred, maximum
EXPORT_NAME_DATA = struct.Struct(">QH")  # bytes, transmission flags; then 124 zeroes unless both sides said NO_ZEROES

HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA = 1 << 0, 1 << 1, 1 << 2, 1 << 3
SEND_TRIM, SEND_WRITE_ZEROES, SEND_DF, CAN_MULTI_CONN, SEND_FAST_ZERO = 1 << 5, 1 << 6, 1 << 7, 1 << 8, 1 << 11

REQUEST = struct.Struct(">IHHQQI")
REQUEST_MAGIC = 0x25609513
CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM, CMD_WRITE_ZEROES, CMD_BLOCK_STATUS = 0, 1, 2, 3, 4, 6, 7
FLAG_FUA, FLAG_NO_HOLE, FLAG_DF, FLAG_REQ_ONE, FLAG_FAST_ZERO = 1, 2, 4, 8, 16

SIMPLE_REPLY = struct.Struct(">IIQ")
SIMPLE_REPLY_MAGIC = 0x67446698
CHUNK = struct.Struct(">IHHQI")
CHUNK_MAGIC = 0x668E33EF
CHUNK_DONE = 1
CHUNK_NONE, CHUNK_DATA, CHUNK_HOLE, CHUNK_BLOCK_STATUS, CHUNK_IS_ERROR = 0, 1, 2, 5, 1 << 15
CHUNK_ERROR = CHUNK_IS_ERROR + 1

ALLOCATION = "base:allocation"
"""The context that says what of a disk is allocated, and what reads as zeroes."""
STATE_HOLE, STATE_ZERO = 1, 2

EPERM, EIO, ENOMEM, EINVAL, ENOSPC, ENOTSUP, ESHUTDOWN = 1, 5, 12, 22, 28, 95, 108
"""Error numbers on the wire: Linux's, whatever the platform."""


class ProtocolError(Exception):
    """The other side does not keep to the protocol: nothing that follows can be understood, the connection must end."""


def short(text: str) -> bytes:
    """A text as a string of the protocol, as much of it as is allowed."""
    return text.replace("\0", " ").encode(errors="replace")[:LONGEST_STRING].decode(errors="ignore").encode()
