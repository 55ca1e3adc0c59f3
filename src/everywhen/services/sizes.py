# SPDX-License-Identifier: AGPL-3.0-or-later
"""Sizes in bytes, as people write and read them.

Shown in decimal units (kB, MB, GB, TB, PB: powers of 1000), as disks are sold and as ux section 4 shows them. Read: the
same, with or without the B (`200G` is 200 GB), the binary units by their own names (KiB, MiB, ...), a bare number of
bytes, or a share of something (`2%`).
"""

from __future__ import annotations

import re
from decimal import Decimal

from everywhen.services.failures import WrongUsage

_DECIMAL = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_FACTORS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgtpe", start=1):
    _FACTORS |= {_letter: 1000**_power, f"{_letter}b": 1000**_power, f"{_letter}ib": 1024**_power}
_NUMBER = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*|%)", re.ASCII)


def size(count: int) -> str:
    """`count` bytes for people: `512 B`, `4.2 kB`, `41.3 MB`, `212 MB`, `2.1 TB`."""
    if count < 0:
        return "-" + size(-count)
    if count < 1000:
        return f"{count} B"
    value = Decimal(count)
    for unit in _DECIMAL[1:]:
        value /= 1000
        shown = f"{value:.1f}" if value < Decimal("99.95") else f"{value:.0f}"
        if Decimal(shown) < 1000 or unit == _DECIMAL[-1]:
            break
    return f"{shown} {unit}"


def parse_size(text: str, *, whole: int | None = None) -> int:
    """Bytes meant by `text`, rounded down; `2%` is a share of `whole` bytes, where there is such a thing.

    Raises WrongUsage.
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise WrongUsage(f'"{text}" is not a size. Sizes look like 20 GB, 512 MiB or 1.5 TB.', on=text)
    number, unit = Decimal(match[1]), match[2]
    if unit == "%":
        if whole is None:
            raise WrongUsage(f'"{text}": a share has no meaning here. Say a size, like 20 GB.', on=text)
        if number > 100:
            raise WrongUsage(f'"{text}" is more than all of it.', on=text)
        return int(number * whole / 100)
    if unit == "" and "." in match[1]:
        raise WrongUsage(f'"{text}" is no whole number of bytes. Is a unit missing, as in {match[1]} GB?', on=text)
    factor = _FACTORS.get(unit.lower())
    if factor is None:
        raise WrongUsage(f'"{text}": no unit "{unit}". Units are B, kB, MB, GB, TB, PB and KiB, MiB, GiB, TiB, PiB.', on=text)
    return int(number * factor)
