# SPDX-License-Identifier: AGPL-3.0-or-later
"""Journal records made by hand."""

from __future__ import annotations

from everywhen.formats.fields import canonical_json
from everywhen.formats.segment import MARK, WRITE, Group, decode_group, encode_group

Made = tuple[int, int, int, bytes]


def mark(disk: int, what: str) -> Made:
    return MARK, disk, 0, canonical_json({"mark": what})


def write(disk: int, offset: int, content: bytes) -> Made:
    return WRITE, disk, offset, content


def group(first: int, *records: Made) -> Group:
    rows = [(kind, disk, offset, len(data), at) for at, (kind, disk, offset, data) in enumerate(records)]
    return decode_group(encode_group(first, 1000 * first, rows, [data for *_, data in records], 1))


OPENED = (mark(0, "tap opened"), mark(1, "tap opened"))
COMPLETE = (mark(0, "complete"), mark(1, "complete"))
