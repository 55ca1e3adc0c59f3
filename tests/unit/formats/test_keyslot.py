# SPDX-License-Identifier: AGPL-3.0-or-later
"""Key slots and keysets as bytes."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from everywhen.formats.cleartext import encode_checked
from everywhen.formats.errors import Corrupt, FormatError, UnsupportedVersion
from everywhen.formats.keyslot import MAX_GENERATIONS, Argon2id, HkdfSha256, Keyset, KeySlot

SLOT_ID = "0123456789abcdef"
CREATED = "2026-11-21T10:32:05Z"
SLOT = KeySlot(b"r" * 16, SLOT_ID, CREATED, "Jörg", 3, Argon2id(65536, 3, 4, b"s" * 16), b"n" * 12, b"w" * 90)
KEYSET = Keyset(b"n" * 32, {1: b"a" * 32, 12: b"b" * 32})


def changed(**fields: Any) -> bytes:
    """The bytes of SLOT with other fields and a right checksum."""
    document = json.loads(SLOT.encode())
    del document["check"]
    return encode_checked({**document, **fields})


def kdf(**fields: Any) -> dict[str, Any]:
    return {**SLOT.kdf.fields(), **fields}


def test_what_was_written_is_read() -> None:
    assert KeySlot.decode(SLOT_ID, SLOT.encode()) == SLOT
    recovery = dataclasses.replace(SLOT, kdf=HkdfSha256(b"s" * 16))
    assert KeySlot.decode(SLOT_ID, recovery.encode()) == recovery
    assert (SLOT.kind, recovery.kind, SLOT.name) == ("passphrase", "recovery", "keys/0123456789abcdef")


@pytest.mark.parametrize(
    "other",
    [
        {"repository_id": b"x" * 16},
        {"slot": "f" * 16},
        {"created": "2026-11-21T10:32:06Z"},
        {"label": "Bob's"},
        {"generation": 4},
        {"kdf": Argon2id(65536, 2, 4, b"s" * 16)},
        {"kdf": HkdfSha256(b"s" * 16)},
        {"extra": {"a": 1}},
    ],
)
def test_every_field_is_bound_to_the_wrapped_keyset(other: dict[str, Any]) -> None:
    assert dataclasses.replace(SLOT, **other).associated_data() != SLOT.associated_data()


def test_a_slot_under_another_name_is_refused() -> None:
    with pytest.raises(Corrupt, match="another slot"):
        KeySlot.decode("f" * 16, SLOT.encode())


def test_fields_of_a_newer_program_are_kept() -> None:
    slot = dataclasses.replace(SLOT, extra={"hint": "the blue book"})
    assert KeySlot.decode(SLOT_ID, slot.encode()) == slot


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"format": 2}, UnsupportedVersion),
        ({"kind": "tpm"}, UnsupportedVersion),
        ({"kdf": kdf(name="scrypt")}, UnsupportedVersion),
        ({"kind": "recovery"}, Corrupt),
        ({"kdf": kdf(memory_kib=(1 << 20) + 1)}, Corrupt),
        ({"kdf": kdf(memory_kib=31)}, Corrupt),
        ({"kdf": kdf(iterations=65)}, Corrupt),
        ({"kdf": kdf(iterations=0)}, Corrupt),
        ({"kdf": kdf(iterations=3.0)}, Corrupt),
        ({"kdf": kdf(lanes=17)}, Corrupt),
        ({"kdf": kdf(lanes=0)}, Corrupt),
        ({"kdf": kdf(salt="73" * 15)}, Corrupt),
        ({"kdf": kdf(pepper=1)}, Corrupt),
        ({"kdf": []}, Corrupt),
        ({"label": "a" * 65}, Corrupt),
        ({"label": "\x1b[31m"}, Corrupt),
        ({"label": "a\nb"}, Corrupt),
        ({"label": "\ud800"}, Corrupt),
        ({"label": None}, Corrupt),
        ({"generation": 0}, Corrupt),
        ({"generation": 10**9}, Corrupt),
        ({"nonce": "00" * 11}, Corrupt),
        ({"wrapped": "00" * 16}, Corrupt),
        ({"wrapped": "0" * 99}, Corrupt),
        ({"wrapped": "zz" * 50}, Corrupt),
        ({"wrapped": "AA" * 50}, Corrupt),
        ({"created": "tomorrow"}, Corrupt),
    ],
)
def test_an_impossible_field_is_refused_even_with_a_right_checksum(fields: dict[str, Any], error: type[FormatError]) -> None:
    with pytest.raises(error):
        KeySlot.decode(SLOT_ID, changed(**fields))


def test_a_keyset_survives_and_shows_nothing() -> None:
    extended = dataclasses.replace(KEYSET, extra={"agent_key": "6b6b"})
    assert Keyset.decode(extended.encode()) == extended
    assert KEYSET.current == 12
    assert Keyset(b"n" * 32, {}).current == 0
    for secret in ("6b6b", "nnn", "aaa", "6e6e", "6161"):
        assert secret not in f"{extended!r} {extended}"


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"version": 2}, UnsupportedVersion),
        ({"require": ["agent_key"], "agent_key": "00"}, UnsupportedVersion),
        ({"require": [1]}, Corrupt),
        ({"generations": {}}, Corrupt),
        ({"generations": {"0": "00" * 32}}, Corrupt),
        ({"generations": {"01": "00" * 32}}, Corrupt),
        ({"generations": {"-1": "00" * 32}}, Corrupt),
        ({"generations": {"٣": "00" * 32}}, Corrupt),
        ({"generations": {"1" * 5000: "00" * 32}}, Corrupt),
        ({"generations": {"1": "00" * 31}}, Corrupt),
        ({"generations": {str(number): "00" * 32 for number in range(1, MAX_GENERATIONS + 2)}}, Corrupt),
        ({"naming_key": "00"}, Corrupt),
    ],
)
def test_a_keyset_that_can_not_be_understood_is_refused(fields: dict[str, Any], error: type[FormatError]) -> None:
    document = {**json.loads(KEYSET.encode()), **fields}
    with pytest.raises(error):
        Keyset.decode(json.dumps(document).encode())


def test_a_slot_with_as_many_generations_as_allowed_can_be_read_again() -> None:
    keyset = Keyset(b"n" * 32, dict.fromkeys(range(10**9 - MAX_GENERATIONS, 10**9), b"k" * 32))
    slot = dataclasses.replace(SLOT, wrapped=keyset.encode() + bytes(16))
    assert KeySlot.decode(SLOT_ID, slot.encode()) == slot
