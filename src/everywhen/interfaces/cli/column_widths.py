# SPDX-License-Identifier: AGPL-3.0-or-later
"""How wide the columns of a table are on a terminal that is too narrow for it: broken at blanks rather than in words, of which
some (ids, times, names) are there to be copied."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len


def column_widths(heads: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """A width for each column, in all no more than `room` cells; None where words must be broken.

    Words of heads are broken before those of rows.
    """
    columns = [[row[at] for row in rows] for at in range(len(heads))]
    whole = [max(map(cell_len, [head, *column])) for head, column in zip(heads, columns, strict=True)]
    in_rows = [max((cell_len(word) for cell in column for word in cell.split()), default=1) for column in columns]
    in_all = [max(least, *map(cell_len, head.split() or [""])) for head, least in zip(heads, in_rows, strict=True)]
    for least in (in_all, in_rows):
        if sum(least) <= room:
            return _spread(least, whole, room - sum(least))
    return None


def _spread(least: Sequence[int], whole: Sequence[int], left: int) -> list[int]:
    """What is left goes to the columns that want the least; the next one takes what is left then."""
    widths = list(least)
    for at in sorted(range(len(least)), key=lambda at: whole[at] - least[at]):
        more = min(whole[at] - least[at], left)
        widths[at] += more
        left -= more
    return widths
