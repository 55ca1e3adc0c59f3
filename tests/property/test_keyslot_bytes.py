# SPDX-License-Identifier: AGPL-3.0-or-later
"""Any damage to a superblock or a slot is a typed error or changes nothing; a wrong secret opens nothing [I-8]."""

from __future__ import annotations

import dataclasses
import json
import random
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everywhen.formats.cleartext import encode_checked
from everywhen.formats.errors import FormatError
from everywhen.formats.keyslot import Keyset, KeySlot
from everywhen.formats.superblock import ENCRYPTED, Superblock
from everywhen.repository.keys.keyslots import Cost, Mint, passphrase_bytes, unwrap

MINT = Mint(random.Random(1).randbytes, 1_795_257_125_000_000_000, Cost(8, 1, 1))
KEYSET = Keyset(b"n" * 32, {1: b"a" * 32, 2: b"b" * 32})
SLOT = MINT.passphrase_slot(b"r" * 16, KEYSET, "right", "desk")
RECOVERY_SLOT = MINT.recovery_slot(b"r" * 16, KEYSET, "sheet")[0]
BLOCK = Superblock(b"r" * 16, b"f" * 16, MINT.created, ENCRYPTED).signed(b"m" * 32)
OBJECTS = [
    pytest.param(BLOCK, Superblock.decode, id="superblock"),
    pytest.param(SLOT, partial(KeySlot.decode, SLOT.slot), id="passphrase"),
    pytest.param(RECOVERY_SLOT, partial(KeySlot.decode, RECOVERY_SLOT.slot), id="recovery"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize(("value", "decode"), OBJECTS)
def test_every_flipped_bit_is_a_typed_error(value: Any, decode: Any) -> None:
    raw = value.encode()
    for bit in range(8 * len(raw)):
        broken = bytearray(raw)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            decode(bytes(broken))


@pytest.mark.parametrize(("value", "decode"), OBJECTS)
def test_every_truncation_is_a_typed_error(value: Any, decode: Any) -> None:
    raw = value.encode()
    for length in range(len(raw)):
        with pytest.raises(FormatError):
            decode(raw[:length])


@pytest.mark.parametrize("decode", [Superblock.decode, partial(KeySlot.decode, SLOT.slot), Keyset.decode])
@given(raw=st.binary(max_size=200) | st.text(max_size=100).map(lambda text: b"{" + text.encode("utf8", "replace") + b"}\n"))
def test_any_bytes_at_all(decode: Any, raw: bytes) -> None:
    with pytest.raises(FormatError):
        decode(raw)


@pytest.mark.parametrize(("value", "decode"), OBJECTS)
@given(chance=st.randoms(use_true_random=False), replacement=JSON)
def test_any_field_of_any_type_with_a_right_checksum(value: Any, decode: Any, chance: Any, replacement: Any) -> None:
    document = json.loads(value.encode())
    del document["check"]
    where = document
    name = chance.choice(sorted(document))
    for inner in ("kdf", "features"):
        if name == inner and chance.random() < 0.7:
            where = document[inner]
            name = chance.choice(sorted(where))
    where[name] = replacement
    try:
        raw = encode_checked(document)
    except ValueError:  # NaN: can't be written by us
        raw = json.dumps(document).encode() + b"\n"
    try:
        read = decode(raw)
    except FormatError:
        return
    assert read.encode() == raw


@given(secret=st.text(min_size=1, max_size=30).filter(lambda text: text != "right"))
@settings(max_examples=200)
def test_a_wrong_passphrase_never_unwraps(secret: str) -> None:
    assert unwrap(SLOT, passphrase_bytes("right")) == KEYSET
    assert unwrap(SLOT, passphrase_bytes(secret)) is None


@given(bit=st.integers(0, 8 * len(SLOT.wrapped) - 1), nonce_bit=st.integers(0, 95))
def test_a_forged_slot_with_a_right_checksum_never_unwraps(bit: int, nonce_bit: int) -> None:
    wrapped, nonce = bytearray(SLOT.wrapped), bytearray(SLOT.nonce)
    wrapped[bit // 8] ^= 1 << bit % 8
    nonce[nonce_bit // 8] ^= 1 << nonce_bit % 8
    for forged in (
        dataclasses.replace(SLOT, wrapped=bytes(wrapped)),
        dataclasses.replace(SLOT, nonce=bytes(nonce)),
        dataclasses.replace(SLOT, label="another"),
        dataclasses.replace(SLOT, generation=3),
        dataclasses.replace(SLOT, repository_id=b"x" * 16),
        dataclasses.replace(SLOT, slot="0" * 16),
    ):
        read = KeySlot.decode(forged.slot, forged.encode())
        assert unwrap(read, passphrase_bytes("right")) is None
