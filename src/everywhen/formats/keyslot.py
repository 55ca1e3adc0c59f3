# SPDX-License-Identifier: AGPL-3.0-or-later
"""The keyset, and key slots (`keys/<slot>`): copies of it, each wrapped by one passphrase or one recovery key.

A slot, in the clear (see `cleartext`):

| field | type | meaning |
|---|---|---|
| magic | text | `everywhen key slot` |
| format | whole | 1 |
| repository | 32 hex | whose slot this is; slots that an interrupted `init` left behind are recognised by it |
| slot | 16 hex | its id, random, as in the object's name |
| kind | text | `passphrase` or `recovery` |
| created | time | RFC 3339, UTC, whole seconds |
| label | text | what a person called it; printable, at most 64 characters |
| generation | whole | the newest generation in the wrapped keyset, so that the newest slot is tried first |
| kdf | object | passphrase: `name` argon2id (RFC 9106), `memory_kib`, `iterations`, `lanes`, `salt` (32 hex) |
| | | recovery: `name` hkdf-sha256 (RFC 5869), `salt`: that key has full entropy already |
| nonce | 24 hex | of AES-256-GCM |
| wrapped | hex | the keyset, encrypted; 16 bytes of tag at the end |
| check | 32 hex | see `cleartext` |

Associated data of `wrapped` is the canonical form of all other fields but `nonce` and `check`: nothing in a slot can be
changed or moved to another slot or repository without its secret. Unknown fields are kept (`extra`) and bound as well.

The keyset inside, compact canonical JSON:

| field | type | meaning |
|---|---|---|
| version | whole | 1 |
| naming_key | 64 hex | names chunks; never changes |
| generations | object | number from 1, decimal -> 64 hex: encryption keys; the highest one encrypts what is new |
| require | list | names of further fields that a reader must know, or else refuse the keyset |

Further fields not in `require` are optional: ignored, and kept when the keyset is wrapped again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from everywhen.formats.cleartext import canonical, decode_checked, encode_checked, time_field
from everywhen.formats.errors import Corrupt, UnsupportedVersion
from everywhen.formats.fields import canonical_json, hexbytes, mapping, parse_json, text, texts, whole

KEY_SIZE = 32
SALT_SIZE = 16
NONCE_SIZE = 12
MAX_LABEL = 64
MAX_GENERATIONS = 256
"""A slot with that many has 40 of the 64 KiB it may have; rotated monthly that is 21 years."""

PASSPHRASE = "passphrase"  # noqa: S105
RECOVERY = "recovery"

# Bounds for parameters that anybody who can write to the store can set: memory and time until a wrong one is noticed.
MAX_MEMORY_KIB = 1 << 20
MAX_ITERATIONS = 64
MAX_LANES = 16

_MAGIC = "everywhen key slot"
_FORMAT = 1
_NEWER = f"This key slot has format {{format}}; this program knows {_FORMAT}. Nothing was touched. Update Everywhen."
_MAX_WRAPPED = 32 << 10
_TAG_SIZE = 16
_SLOT_FIELDS = frozenset(
    ("magic", "format", "repository", "slot", "kind", "created", "label", "generation", "kdf", "nonce", "wrapped")
)
_KEYSET_FIELDS = frozenset(("version", "naming_key", "generations", "require"))


@dataclass(frozen=True, slots=True, repr=False)
class Keyset:
    """All secrets of a repository. Its repr shows none of them.

    `generations` is empty where the repository is not encrypted. `extra`: fields of newer programs, kept as they are.
    """

    naming_key: bytes
    generations: Mapping[int, bytes]
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Keyset({len(self.generations)} generations, current {self.current})"

    @property
    def current(self) -> int:
        """Number of the generation that encrypts what is new; 0 where nothing is encrypted."""
        return max(self.generations, default=0)

    def encode(self) -> bytes:
        """The secret bytes that a slot wraps."""
        known = {
            "version": 1,
            "naming_key": self.naming_key.hex(),
            "generations": {str(number): key.hex() for number, key in self.generations.items()},
            "require": [],
        }
        return canonical_json({**self.extra, **known})

    @classmethod
    def decode(cls, raw: bytes) -> Keyset:
        """Raises Corrupt, UnsupportedVersion."""
        fields = parse_json("keyset", raw)
        if whole(fields, "version") != 1:
            raise UnsupportedVersion("These keys were written by a newer program. Nothing was touched. Update Everywhen.")
        unknown = sorted(set(texts(fields, "require")) - _KEYSET_FIELDS)
        if unknown:
            raise UnsupportedVersion(
                "These keys have a part that only a newer program understands. Nothing was touched. Update Everywhen."
            )
        written = mapping(fields, "generations")
        generations: dict[int, bytes] = {}
        for number in written:
            # isdecimal alone would admit digits of other scripts
            if not (number.isascii() and number.isdecimal()) or len(number) > 9 or number.startswith("0"):
                raise Corrupt("keyset: a generation has an impossible number")
            generations[int(number)] = hexbytes(written, number, KEY_SIZE)
        if not 1 <= len(generations) <= MAX_GENERATIONS:
            raise Corrupt(f"keyset: {len(generations)} generations")
        extra = {name: value for name, value in fields.items() if name not in _KEYSET_FIELDS}
        return cls(hexbytes(fields, "naming_key", KEY_SIZE), generations, extra)


@dataclass(frozen=True, slots=True)
class Argon2id:
    """Price of one guess at a passphrase: memory in KiB, passes over it, lanes; and the slot's salt."""

    memory_kib: int
    iterations: int
    lanes: int
    salt: bytes

    def fields(self) -> dict[str, Any]:
        """As written in a slot."""
        cost = {"memory_kib": self.memory_kib, "iterations": self.iterations, "lanes": self.lanes}
        return {"name": "argon2id", **cost, "salt": self.salt.hex()}


@dataclass(frozen=True, slots=True)
class HkdfSha256:
    """For secrets that nobody can guess."""

    salt: bytes

    def fields(self) -> dict[str, Any]:
        """As written in a slot."""
        return {"name": "hkdf-sha256", "salt": self.salt.hex()}


@dataclass(frozen=True, slots=True)
class KeySlot:
    """One wrapped copy of the keyset. Nothing in it is proven until it has been unwrapped."""

    repository_id: bytes
    slot: str
    created: str
    label: str
    generation: int
    kdf: Argon2id | HkdfSha256
    nonce: bytes = field(default=b"", repr=False)
    wrapped: bytes = field(default=b"", repr=False)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """PASSPHRASE or RECOVERY."""
        return PASSPHRASE if isinstance(self.kdf, Argon2id) else RECOVERY

    @property
    def name(self) -> str:
        """Name of the object."""
        return slot_name(self.slot)

    def associated_data(self) -> bytes:
        """What the tag in `wrapped` also covers."""
        return canonical(self._bound_fields())

    def encode(self) -> bytes:
        """The object's bytes. Raises ValueError for a slot that could not be read again."""
        raw = encode_checked(self._fields())
        if KeySlot.decode(self.slot, raw) != self:
            raise ValueError("this slot would not be read as it was written")
        return raw

    @classmethod
    def decode(cls, slot: str, raw: bytes) -> KeySlot:
        """The slot stored as `keys/<slot>`. Raises BadMagic, Truncated, Corrupt, UnsupportedVersion."""
        what = slot_name(slot)
        fields = decode_checked(what, raw, _MAGIC, _FORMAT, newer=_NEWER)
        if text(fields, "slot") != slot:
            raise Corrupt(f"{what} is another slot's object")
        label = text(fields, "label")
        if len(label) > MAX_LABEL or not label.isprintable():
            raise Corrupt(f"{what}: label is too long or not printable")
        wrapped = text(fields, "wrapped")
        if not 2 * _TAG_SIZE < len(wrapped) <= 2 * _MAX_WRAPPED:
            raise Corrupt(f"{what}: the wrapped keyset has an impossible length")
        found = cls(
            repository_id=hexbytes(fields, "repository", 16),
            slot=slot,
            created=time_field(fields, "created"),
            label=label,
            generation=_between(fields, "generation", 1, 10**9 - 1),
            kdf=_kdf(what, text(fields, "kind"), mapping(fields, "kdf")),
            nonce=hexbytes(fields, "nonce", NONCE_SIZE),
            wrapped=hexbytes(fields, "wrapped", len(wrapped) // 2),
            extra={name: value for name, value in fields.items() if name not in _SLOT_FIELDS},
        )
        if found._fields() != fields:
            raise Corrupt(f"{what}: a field is not in its canonical form")
        return found

    def _bound_fields(self) -> dict[str, Any]:
        return {
            **self.extra,
            "magic": _MAGIC,
            "format": _FORMAT,
            "repository": self.repository_id.hex(),
            "slot": self.slot,
            "kind": self.kind,
            "created": self.created,
            "label": self.label,
            "generation": self.generation,
            "kdf": self.kdf.fields(),
        }

    def _fields(self) -> dict[str, Any]:
        return {**self._bound_fields(), "nonce": self.nonce.hex(), "wrapped": self.wrapped.hex()}


def slot_name(slot: str) -> str:
    """Name of the object that holds this slot."""
    return f"keys/{slot}"


def _kdf(what: str, kind: str, fields: Mapping[str, Any]) -> Argon2id | HkdfSha256:
    name = text(fields, "name")
    if kind not in (PASSPHRASE, RECOVERY) or name not in ("argon2id", "hkdf-sha256"):
        raise UnsupportedVersion(f"{what} is of a kind that only a newer program can open. Update Everywhen.")
    if (kind == PASSPHRASE) != (name == "argon2id"):
        raise Corrupt(f"{what}: kind and key derivation do not belong together")
    salt = hexbytes(fields, "salt", SALT_SIZE)
    if kind == RECOVERY:
        return HkdfSha256(salt)
    lanes = _between(fields, "lanes", 1, MAX_LANES)
    memory_kib = _between(fields, "memory_kib", 8 * lanes, MAX_MEMORY_KIB)  # RFC 9106, 3.1: at least 8 KiB per lane
    return Argon2id(memory_kib, _between(fields, "iterations", 1, MAX_ITERATIONS), lanes, salt)


def _between(fields: Mapping[str, Any], key: str, least: int, most: int) -> int:
    value = whole(fields, key, most=most)
    if value < least:
        raise Corrupt(f"field {key!r} is less than {least}")
    return value
