# SPDX-License-Identifier: AGPL-3.0-or-later
"""A VHDX file as it will be once its log has been replayed ([MS-VHDX] 2.3.3). The file itself is not touched."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Final

from everywhen.block.host_file import HostFile
from everywhen.block.image_errors import ImageDamaged, ImageUnsupported
from everywhen.formats.images.vhdx import MIB, VhdxHeader
from everywhen.formats.images.vhdx_log import Patch, read_log

_LONGEST_LOG: Final = 16 * MIB  # Hyper-V and QEMU make logs of 1 MiB
_MOST_ZERO_RANGES: Final = 4096  # each read looks at all of them


class ReplayedFile(HostFile):
    """Reads go to the file, with the log's writes laid over it in their order."""

    def __init__(self, path: str, patches: tuple[Patch, ...], size: int) -> None:
        super().__init__(path)
        self._file_size, self.size = self.size, max(self.size, size)
        self._sparse = False
        self._sectors: dict[int, bytes] = {}
        self._zeroes: list[Patch] = []
        for patch in patches:
            self._add(patch)
        self._order = sorted(self._sectors)

    def _add(self, patch: Patch) -> None:
        if patch.data is not None:
            self._sectors[patch.offset] = patch.data
            return
        for at in [at for at in self._sectors if patch.offset <= at < patch.offset + patch.length]:
            del self._sectors[at]
        self._zeroes.append(patch)

    def read(self, offset: int, length: int) -> bytes:
        end = offset + length
        if end > self.size:
            raise ImageDamaged(f"{self.path} has {self.size} bytes, but the image needs bytes {offset} to {end}")
        from_file = max(0, min(end, self._file_size) - offset)
        content = bytearray(super().read(offset, from_file)) + bytes(length - from_file)
        for begin, stop, piece in self._pieces(offset, end):
            content[begin - offset : stop - offset] = piece
        return bytes(content)

    def _pieces(self, start: int, end: int) -> Iterator[tuple[int, int, bytes]]:
        """What the log writes from `start` to `end`: zeroes first, since later sectors have displaced them."""
        for patch in self._zeroes:
            begin, stop = max(start, patch.offset), min(end, patch.offset + patch.length)
            if begin < stop:
                yield begin, stop, bytes(stop - begin)
        for at in self._order[bisect_right(self._order, start - 4096) : bisect_left(self._order, end)]:
            begin, stop = max(start, at), min(end, at + 4096)
            yield begin, stop, self._sectors[at][begin - at : stop - at]


def replay(host: HostFile, header: VhdxHeader) -> HostFile:
    """The file with its log replayed: another open file, to be used instead of `host`."""
    if header.log_length > _LONGEST_LOG:
        raise ImageUnsupported(f"{host.path} has a log of {header.log_length} bytes, which is too long to replay here")
    if not header.log_length or header.log_length % MIB or header.log_offset % MIB or header.log_offset < MIB:
        raise ImageDamaged(f"{host.path}: the log of the VHDX is at an impossible place")
    log = read_log(host.read(header.log_offset, header.log_length), header.log_guid)
    if sum(patch.data is None for patch in log.patches) > _MOST_ZERO_RANGES:
        raise ImageUnsupported(f"{host.path} has a log that is too long to replay here")
    if host.size < log.flushed_size:
        raise ImageDamaged(f"{host.path} is truncated: its log says that it has at least {log.flushed_size} bytes")
    return ReplayedFile(host.path, log.patches, log.last_size)
