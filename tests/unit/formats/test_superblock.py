# SPDX-License-Identifier: AGPL-3.0-or-later
"""The superblock's bytes: readable, signed, and refused with a reason when they are anything but right."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from everywhen.formats.cleartext import MAX_CLEARTEXT, canonical, encode_checked, rfc3339
from everywhen.formats.errors import BadMagic, Corrupt, FormatError, Truncated, UnsupportedVersion
from everywhen.formats.superblock import ENCRYPTED, PLAIN, Access, Superblock

MAC_KEY = b"m" * 32
BLANK = Superblock(b"r" * 16, b"f" * 16, "2026-11-21T10:32:05Z", ENCRYPTED)
BLOCK = BLANK.signed(MAC_KEY)


def changed(**fields: Any) -> bytes:
    """The bytes of BLOCK with other fields and a right checksum; a field of None goes."""
    document = json.loads(BLOCK.encode())
    del document["check"]
    document.update(fields)
    return encode_checked({name: value for name, value in document.items() if value is not None})


def test_the_bytes_of_a_known_superblock_never_change() -> None:
    assert BLOCK.encode().decode() == (
        '{\n "block_size": 65536,\n "check": "bd57920666298aaf7173c044b2555283",\n "created": "2026-11-21T10:32:05Z",\n'
        ' "encryption": "aes-256-gcm",\n "family": "66666666666666666666666666666666",\n "features": {\n  "gc": [],\n'
        '  "read": [],\n  "write": []\n },\n "format": 1,\n'
        ' "mac": "231893870526a5cf160e017beaef4f7d1a906ee2d7f6d9cb94ee75aacd4dd6f7",\n'
        ' "magic": "everywhen repository",\n "repository": "72727272727272727272727272727272"\n}\n'
    )


def test_what_was_written_is_read() -> None:
    assert Superblock.decode(BLOCK.encode()) == BLOCK
    plain = dataclasses.replace(BLANK, encryption=PLAIN, naming_key=b"n" * 32).signed(MAC_KEY)
    assert Superblock.decode(plain.encode()) == plain


def test_the_naming_key_is_not_shown() -> None:
    plain = dataclasses.replace(BLANK, encryption=PLAIN, naming_key=b"nnn" + bytes(29))
    assert "nnn" not in repr(plain)


def test_fields_of_a_newer_program_are_kept_and_signed() -> None:
    extended = dataclasses.replace(BLANK, extra={"note": {"a": [1, "é"]}}).signed(MAC_KEY)
    read = Superblock.decode(extended.encode())
    assert read == extended
    read.check_mac(MAC_KEY)
    with pytest.raises(Corrupt):
        dataclasses.replace(read, extra={}).check_mac(MAC_KEY)


@pytest.mark.parametrize(
    "forged",
    [
        {"repository_id": b"x" * 16},
        {"family_id": b"x" * 16},
        {"created": "2026-11-21T10:32:06Z"},
        {"features": {"read": (), "write": (), "gc": ("x",)}},
        {"encryption": PLAIN, "naming_key": b"k" * 32},
    ],
)
def test_a_forged_field_is_noticed_by_the_holder_of_the_keys(forged: dict[str, Any]) -> None:
    BLOCK.check_mac(MAC_KEY)
    block = Superblock.decode(dataclasses.replace(BLOCK, **forged).encode())  # reads well: its checksum is right
    with pytest.raises(Corrupt, match="not the one that was written with these keys"):
        block.check_mac(MAC_KEY)


def test_another_key_does_not_prove_it() -> None:
    with pytest.raises(Corrupt):
        BLOCK.check_mac(b"n" * 32)


@pytest.mark.parametrize(
    ("feature", "allowed", "refused"),
    [("read", "", "read write gc"), ("write", "read", "write gc"), ("gc", "read write", "gc")],
)
def test_an_unknown_feature_refuses_its_access_and_all_that_builds_on_it(feature: Access, allowed: str, refused: str) -> None:
    features: dict[Access, tuple[str, ...]] = {"read": (), "write": (), "gc": (), feature: ("time-travel",)}
    block = Superblock.decode(dataclasses.replace(BLANK, features=features).signed(MAC_KEY).encode())
    accesses: tuple[Access, ...] = ("read", "write", "gc")
    for access in accesses:
        if access in allowed.split():
            block.require(access)
        else:
            assert access in refused.split()
            with pytest.raises(UnsupportedVersion, match=r"time-travel.*Nothing was touched\. Update"):
                block.require(access)


def test_a_newer_format_says_so_whatever_else_it_holds() -> None:
    raw = canonical({"magic": "everywhen repository", "format": 2, "zebra": [None]})
    message = "This repository has format 2; this program knows 1. Nothing was touched. Update Everywhen."
    with pytest.raises(UnsupportedVersion, match=re.escape(message)):
        Superblock.decode(raw)


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"", Truncated),
        (b"\x00" * 500, BadMagic),
        (b"QFI\xfb", BadMagic),
        (b"{", Truncated),
        (b'{"magic":"other"}\n', BadMagic),
        (b'{"magic":"everywhen repository","format":true}\n', Corrupt),
        (b'{"magic":"everywhen repository","format":1}\n', Corrupt),
        (b'{"magic":"everywhen repository","format":1,"x":NaN}\n', Corrupt),
        (b'{"a":' + b"[" * 60000 + b"}\n", Corrupt),
        (b'{"magic":"everywhen repository","format":1,"a":' + b"[" * 900 + b"]" * 900 + b"}\n", Corrupt),
        (b'{"a":' + b"9" * 60000 + b"}\n", Corrupt),
        (b'{"a":"\xff"}\n', Corrupt),
        (b"{" + b" " * MAX_CLEARTEXT + b"}\n", Corrupt),
        (BLOCK.encode().replace(b"\n ", b"\n  "), Corrupt),
        (BLOCK.encode().replace(b'"format": 1,', b'"format": 1,\n "format": 1,'), Corrupt),
    ],
)
def test_bytes_that_are_no_superblock(raw: bytes, error: type[FormatError]) -> None:
    with pytest.raises(error):
        Superblock.decode(raw)


@pytest.mark.parametrize(
    "fields",
    [
        {"repository": "72" * 15},
        {"repository": "72" * 15 + "  72"},
        {"family": ("6" * 31 + "F")},
        {"family": 7},
        {"created": "2026-11-21 10:32:05"},
        {"created": 0},
        {"block_size": 4096},
        {"block_size": True},
        {"encryption": "rot13"},
        {"encryption": "none"},
        {"naming_key": "00" * 32},
        {"features": {}},
        {"features": {"read": [], "write": [], "gc": [], "eat": []}},
        {"features": {"read": [1], "write": [], "gc": []}},
        {"features": {"read": ["b", "a"], "write": [], "gc": []}},
        {"features": {"read": ["\x1b[2J"], "write": [], "gc": []}},
        {"features": None},
        {"mac": "00"},
        {"mac": None},
        {"repository": None},
    ],
)
def test_an_impossible_field_is_corrupt_even_with_a_right_checksum(fields: dict[str, Any]) -> None:
    with pytest.raises(Corrupt):
        Superblock.decode(changed(**fields))


def test_nothing_is_written_that_could_not_be_read() -> None:
    with pytest.raises(ValueError, match="signed"):
        BLANK.encode()
    with pytest.raises(Corrupt):
        dataclasses.replace(BLANK, repository_id=b"short").signed(MAC_KEY).encode()
    with pytest.raises(ValueError, match="limit"):
        dataclasses.replace(BLANK, extra={"a": "b" * MAX_CLEARTEXT}).signed(MAC_KEY).encode()


def test_times_are_whole_seconds_in_utc() -> None:
    assert rfc3339(1_795_257_125_999_999_999) == "2026-11-21T10:32:05Z"
