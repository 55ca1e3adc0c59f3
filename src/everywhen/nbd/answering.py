# SPDX-License-Identifier: AGPL-3.0-or-later
"""Requests of one client carried out on the device that it chose; its answers as bytes. Any thread may carry out any."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from everywhen.nbd import protocol as p
from everywhen.nbd.devices import OpenedExport, Writer
from everywhen.nbd.exports import Export
from everywhen.nbd.replies import Replies, merged
from everywhen.nbd.server import Request

_PREFERRED = 64 << 10
"""Bytes of a request that cost no more than needed: contents lie in blocks of this size."""
_WRITABLE = p.SEND_FLUSH | p.SEND_FUA | p.SEND_TRIM | p.SEND_WRITE_ZEROES | p.SEND_FAST_ZERO
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def offered(opened: OpenedExport) -> Export:
    """What a client is told about a device. All connections see one state, so it may use several."""
    flags = p.CAN_MULTI_CONN | (_WRITABLE if opened.writer else p.READ_ONLY)
    return Export(opened.device.size, flags, preferred=_PREFERRED, description=opened.description)


def error_number(error: Exception) -> int:
    """The protocol's number for a failure."""
    return p.ENOSPC if isinstance(error, OSError) and error.errno in _NO_ROOM else p.EIO


def carried_out(request: Request, opened: OpenedExport, replies: Replies, context: int | None) -> Sequence[bytes]:
    """Do what is asked; the answer. Raises what the device raises."""
    command, flags, cookie, offset, length, _ = request
    if command == p.CMD_READ:
        return replies.read(cookie, offset, opened.device.read(offset, length))
    if command == p.CMD_BLOCK_STATUS and context is not None:
        extents = merged(opened.device.status(offset, length), length, one=bool(flags & p.FLAG_REQ_ONE))
        return [replies.status(cookie, context, extents)]
    if opened.writer:
        _written(request, opened.writer)
    return [replies.done(cookie)]


def _written(request: Request, writer: Writer) -> None:
    """Zeroes may become holes whatever the client says of them: what it wrote must be there, how it lies is not its concern."""
    if request.command == p.CMD_WRITE:
        writer.write(request.offset, request.data)
    elif request.command in (p.CMD_TRIM, p.CMD_WRITE_ZEROES):
        writer.zero(request.offset, request.length)
    if request.command == p.CMD_FLUSH or request.flags & p.FLAG_FUA:
        writer.flush()
