# SPDX-License-Identifier: AGPL-3.0-or-later
"""The recovery key as text: every mistake a typist makes is noticed, and named where it can be."""

from __future__ import annotations

import random

import pytest

from everywhen.formats.errors import BadMagic, FormatError, Truncated
from everywhen.formats.recoverykey import GROUPS, RecoveryKeyTypo, read_recovery_key, write_recovery_key

KEY = bytes(range(20))
TEXT = "000G4X-0R40MJ-30E200-9185GS-R38E1X-W81247-GKMGCP-FNV373"
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def test_the_text_of_a_known_key_never_changes() -> None:
    assert write_recovery_key(KEY) == TEXT
    assert read_recovery_key(TEXT) == KEY


@pytest.mark.parametrize(
    "typed",
    [
        TEXT.lower(),
        TEXT.replace("0", "O").replace("1", "l"),
        TEXT.replace("0", "o").replace("1", "I"),
        TEXT.replace("-", ""),
        TEXT.replace("-", " \n"),
        f"  {TEXT}\t",
        TEXT.replace("-", "")[:20] + " " + TEXT.replace("-", "")[20:],
    ],
)
def test_case_blanks_and_look_alikes_do_not_matter(typed: str) -> None:
    assert read_recovery_key(typed) == KEY


def test_every_single_wrong_character_is_noticed_in_its_group() -> None:
    for at, right in enumerate(TEXT):
        for wrong in ALPHABET:
            if right not in ("-", wrong):
                with pytest.raises(RecoveryKeyTypo) as caught:
                    read_recovery_key(TEXT[:at] + wrong + TEXT[at + 1 :])
                assert caught.value.groups == (at // 7 + 1,)


def test_groups_in_each_others_place_are_both_named() -> None:
    groups = TEXT.split("-")
    groups[2], groups[5] = groups[5], groups[2]
    with pytest.raises(RecoveryKeyTypo, match="group 3, 6 of 8"):
        read_recovery_key("-".join(groups))


def test_any_garbled_group_is_noticed_even_where_its_own_check_fits() -> None:
    chance = random.Random(4)
    unnamed = 0
    for _ in range(2000):
        groups = TEXT.split("-")
        at = chance.randrange(GROUPS)
        groups[at] = "".join(chance.choices(ALPHABET, k=6))
        with pytest.raises(RecoveryKeyTypo) as caught:
            read_recovery_key("-".join(groups))
        assert caught.value.groups in ((), (at + 1,))
        unnamed += not caught.value.groups
    assert 20 < unnamed < 120  # 1 of 32 is told by the check over all only


def test_a_group_with_a_character_too_few_is_named() -> None:
    with pytest.raises(RecoveryKeyTypo, match="group 4 of 8"):
        read_recovery_key(TEXT.replace("9185GS", "9185G"))


def test_a_character_that_no_group_has_is_named() -> None:
    with pytest.raises(RecoveryKeyTypo, match="group 4 of 8"):
        read_recovery_key(TEXT.replace("9185GS", "9185GU"))


def test_missing_groups_are_counted() -> None:
    with pytest.raises(Truncated, match="6 of 8 groups"):
        read_recovery_key(TEXT[:41])


@pytest.mark.parametrize("text", ["", "correct horse battery staple", "secret", "x" * 47, "a-b-c-d-e-f-g-h", "ß" * 30])
def test_a_passphrase_is_not_taken_for_a_recovery_key(text: str) -> None:
    with pytest.raises(BadMagic):
        read_recovery_key(text)


def test_odd_unicode_is_an_error_not_a_crash() -> None:
    for text in ("ﬀ" * 24, "٣" * 48, "\ud800" * 48, "ı" * 48):  # noqa: RUF001
        with pytest.raises(FormatError):
            read_recovery_key(text)


def test_a_key_of_another_size_is_a_fault_of_the_program() -> None:
    with pytest.raises(ValueError, match="20 bytes"):
        write_recovery_key(bytes(16))
