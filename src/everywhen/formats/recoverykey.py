# SPDX-License-Identifier: AGPL-3.0-or-later
"""The recovery key on paper: 160 random bits as 8 groups of 6 characters, made to be typed by a person under stress.

    7KQ2M0-XH9F4T-...  (48 characters of Crockford's base32: no I, L, O, U)

| characters | meaning |
|---|---|
| 1 to 5 of each group | 25 bits each, 200 together: the key (160 bits), then the first 5 bytes of BLAKE3 over it |
| 6 of each group | check of the group: (group number + 3, 5, 7, 9, 11 times its characters) modulo 32 |

Reading forgives case, blanks and dashes, and takes O for 0, I and L for 1. The weights are odd, hence invertible modulo
32: one wrong character in a group is always noticed there, any other mistake 31 times of 32, and the group is named. Two
groups in each other's place are noticed by their number. What slips through is caught by the 40 bits over all, without
a group.
"""

from __future__ import annotations

import re

from blake3 import blake3

from everywhen.formats.errors import BadMagic, Corrupt, Truncated

KEY_SIZE = 20
"""Bytes of randomness in a recovery key."""

GROUPS = 8
_GROUP = 6
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_VALUE = {character: value for value, character in enumerate(_ALPHABET)} | {"O": 0, "I": 1, "L": 1}
_WEIGHTS = (3, 5, 7, 9, 11)
_CHECK_SIZE = 5


class RecoveryKeyTypo(Corrupt):
    """Meant as a recovery key, but not one. `groups` are the wrong ones, from 1; empty when they can't be told."""

    def __init__(self, message: str, groups: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.groups = groups


def write_recovery_key(key: bytes) -> str:
    """The text to print for 20 random bytes."""
    if len(key) != KEY_SIZE:
        raise ValueError(f"a recovery key has {KEY_SIZE} bytes, not {len(key)}")
    number = int.from_bytes(key + blake3(key).digest(_CHECK_SIZE), "big")
    groups = []
    for group in range(GROUPS):
        bits = number >> 25 * (GROUPS - 1 - group)
        values = [bits >> shift & 31 for shift in (20, 15, 10, 5, 0)]
        groups.append("".join(_ALPHABET[value] for value in [*values, _group_check(group, values)]))
    return "-".join(groups)


def read_recovery_key(text: str) -> bytes:
    """The 20 bytes of a recovery key as somebody typed it.

    Raises BadMagic when the text can't have been meant as one (it may be a passphrase), Truncated when groups are
    missing, RecoveryKeyTypo (a Corrupt) otherwise.
    """
    groups = _split(text)
    wrong = tuple(position + 1 for position, group in enumerate(groups) if not _is_right(position, group))
    if wrong:
        names = ", ".join(map(str, wrong))
        raise RecoveryKeyTypo(f"recovery key: please check group {names} of {GROUPS}, something there is mistyped", wrong)
    number = 0
    for group in groups:
        for character in group[:-1]:
            number = number << 5 | _VALUE[character]
    raw = number.to_bytes(KEY_SIZE + _CHECK_SIZE, "big")
    if blake3(raw[:KEY_SIZE]).digest(_CHECK_SIZE) != raw[KEY_SIZE:]:
        raise RecoveryKeyTypo("recovery key: something is mistyped; which group can't be told, please check them all")
    return raw[:KEY_SIZE]


def _split(text: str) -> list[str]:
    """8 groups of upper-case characters; of 6 characters each unless the typist's own dashes show which one is not."""
    groups = re.findall(r"[^\s-]+", text.upper())
    together = "".join(groups)
    if len(together) == GROUPS * _GROUP:
        # whoever types 48 characters may part them as he likes
        return [together[at : at + _GROUP] for at in range(0, GROUPS * _GROUP, _GROUP)]
    regular = [group for group in groups if len(group) == _GROUP and all(character in _VALUE for character in group)]
    if len(groups) == GROUPS and len(regular) >= GROUPS // 2:
        return groups
    if len(groups) < GROUPS and len(regular) == len(groups) >= GROUPS // 2:
        raise Truncated(f"recovery key: {len(groups)} of {GROUPS} groups")
    raise BadMagic(f"not a recovery key: it has {GROUPS} groups of {_GROUP} characters")


def _is_right(position: int, group: str) -> bool:
    values = [_VALUE.get(character, -1) for character in group]
    return len(values) == _GROUP and min(values) >= 0 and values[-1] == _group_check(position, values[:-1])


def _group_check(position: int, values: list[int]) -> int:
    return (position + 1 + sum(weight * value for weight, value in zip(_WEIGHTS, values, strict=True))) % 32
