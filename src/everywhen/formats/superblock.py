# SPDX-License-Identifier: AGPL-3.0-or-later
"""The superblock, object `everywhen`: which repository this is, and who may do what with it.

Written once by `init`, as its last act; never changed, never deleted. In the clear (see `cleartext`), because a program
must know whether it may touch a repository before it asks for a passphrase.

| field | type | meaning |
|---|---|---|
| magic | text | `everywhen repository` |
| format | whole | 1; another one: nothing of the repository is touched |
| repository | 32 hex | random id of this repository |
| family | 32 hex | random id shared by a repository and its replicas: they name chunks with the same key |
| created | time | RFC 3339, UTC, whole seconds |
| block_size | whole | 65536 |
| encryption | text | `aes-256-gcm` or `none` |
| features | object | `read`, `write`, `gc`: sorted lists of names; an unknown name forbids that access to a program |
| naming_key | 64 hex | only with encryption `none`, where chunk names hide nothing |
| mac | 64 hex | BLAKE3, keyed from the naming key, over the canonical form without `mac` and `check` |
| check | 32 hex | see `cleartext` |

Known features: `one-writer` (write): the store cannot keep two writers apart, so they take turns (`repository/alone.py`).
Fields of newer programs that name no new feature are optional: they are kept (`extra`), covered by `mac`, else ignored.
With encryption `none` everybody can make the `mac`: it is a checksum then. A damaged superblock has a twin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from blake3 import blake3

from everywhen.formats.cleartext import canonical, decode_checked, encode_checked, time_field
from everywhen.formats.errors import Corrupt, UnsupportedVersion
from everywhen.formats.fields import hexbytes, mapping, text, texts, whole

SUPERBLOCK_NAME = "everywhen"
FORMAT = 1
BLOCK_SIZE = 65536
ONE_WRITER = "one-writer"
KNOWN_FEATURES = frozenset({ONE_WRITER})
"""Features of format 1 that this program knows."""

ENCRYPTED = "aes-256-gcm"
PLAIN = "none"

Access: TypeAlias = Literal["read", "write", "gc"]

_MAGIC = "everywhen repository"
_NEEDS: dict[Access, tuple[Access, ...]] = {
    "read": ("read",),
    "write": ("read", "write"),
    "gc": ("read", "write", "gc"),
}
_NEWER = f"This repository has format {{format}}; this program knows {FORMAT}. Nothing was touched. Update Everywhen."
_FIELDS = frozenset(
    ("magic", "format", "repository", "family", "created", "block_size", "encryption", "features", "naming_key", "mac")
)


@dataclass(frozen=True, slots=True)
class Superblock:
    """What the object says. `mac` is empty until `signed`, and proves nothing until `check_mac`."""

    repository_id: bytes
    family_id: bytes
    created: str
    encryption: str
    features: Mapping[Access, tuple[str, ...]] = field(default_factory=lambda: {"read": (), "write": (), "gc": ()})
    naming_key: bytes | None = field(default=None, repr=False)
    extra: Mapping[str, Any] = field(default_factory=dict)
    mac: bytes = field(default=b"", repr=False)

    @property
    def encrypted(self) -> bool:
        """Whether a passphrase or the recovery key is needed."""
        return self.encryption == ENCRYPTED

    @property
    def one_writer(self) -> bool:
        """Whether writers must take turns."""
        return ONE_WRITER in self.features["write"]

    def require(self, access: Access) -> None:
        """Raises UnsupportedVersion when a feature that this program does not know forbids `access`."""
        for kind in _NEEDS[access]:
            unknown = sorted(set(self.features[kind]) - KNOWN_FEATURES)
            if unknown:
                verb = {"read": "read it", "write": "write to it", "gc": "free space in it"}[kind]
                raise UnsupportedVersion(
                    f"This repository uses {', '.join(unknown)}, which this program does not know; only a newer one may "
                    f"{verb}. Nothing was touched. Update Everywhen."
                )

    def signed(self, mac_key: bytes) -> Superblock:
        """The same superblock with the right `mac` for this key of 32 bytes."""
        return replace(self, mac=self._mac(mac_key))

    def check_mac(self, mac_key: bytes) -> None:
        """Raises Corrupt when the superblock is not the one that the holder of the keys wrote."""
        if self._mac(mac_key) != self.mac:
            raise Corrupt(f"{SUPERBLOCK_NAME}: the superblock is not the one that was written with these keys")

    def encode(self) -> bytes:
        """The object's bytes. Raises ValueError for a superblock that could not be read again."""
        if len(self.mac) != 32:
            raise ValueError("a superblock is signed before it is written")
        raw = encode_checked({**self._signed_fields(), "mac": self.mac.hex()})
        if Superblock.decode(raw) != self:
            raise ValueError("this superblock would not be read as it was written")
        return raw

    @classmethod
    def decode(cls, raw: bytes) -> Superblock:
        """Raises BadMagic, Truncated, Corrupt, UnsupportedVersion (format). Features are checked by `require`."""
        what = SUPERBLOCK_NAME
        fields = decode_checked(what, raw, _MAGIC, FORMAT, newer=_NEWER)
        encryption = text(fields, "encryption")
        if encryption not in (ENCRYPTED, PLAIN):
            raise Corrupt(f"{what}: unknown encryption")
        if (encryption == PLAIN) != ("naming_key" in fields):
            raise Corrupt(f"{what}: the naming key belongs into unencrypted repositories, and only there")
        if whole(fields, "block_size") != BLOCK_SIZE:
            raise Corrupt(f"{what}: block size is not {BLOCK_SIZE}")
        found = cls(
            repository_id=hexbytes(fields, "repository", 16),
            family_id=hexbytes(fields, "family", 16),
            created=time_field(fields, "created"),
            encryption=encryption,
            features=_features(mapping(fields, "features")),
            naming_key=hexbytes(fields, "naming_key", 32) if encryption == PLAIN else None,
            extra={name: value for name, value in fields.items() if name not in _FIELDS},
            mac=hexbytes(fields, "mac", 32),
        )
        if found._signed_fields() | {"mac": found.mac.hex()} != fields:
            raise Corrupt(f"{what}: a field is not in its canonical form")
        return found

    def _signed_fields(self) -> dict[str, Any]:
        naming_key = {} if self.naming_key is None else {"naming_key": self.naming_key.hex()}
        return {
            **self.extra,
            "magic": _MAGIC,
            "format": FORMAT,
            "repository": self.repository_id.hex(),
            "family": self.family_id.hex(),
            "created": self.created,
            "block_size": BLOCK_SIZE,
            "encryption": self.encryption,
            "features": {kind: list(names) for kind, names in self.features.items()},
            **naming_key,
        }

    def _mac(self, key: bytes) -> bytes:
        return blake3(canonical(self._signed_fields()), key=key).digest()


def _features(fields: Mapping[str, Any]) -> dict[Access, tuple[str, ...]]:
    # Exactly three lists: a fourth kind of access would be one that this program does not know to ask about.
    if set(fields) != {"read", "write", "gc"}:
        raise Corrupt(f"{SUPERBLOCK_NAME}: features are not read, write and gc")
    features: dict[Access, tuple[str, ...]] = {}
    kinds: tuple[Access, ...] = ("read", "write", "gc")
    for kind in kinds:
        names = texts(fields, kind)
        if names != sorted(set(names)) or not all(name.isascii() and name.isprintable() for name in names):
            raise Corrupt(f"{SUPERBLOCK_NAME}: features for {kind} are not a sorted list of names")
        features[kind] = tuple(names)
    return features
