# SPDX-License-Identifier: AGPL-3.0-or-later
"""The envelope of small metadata objects: points, sessions, leases, drops, holds, VMs. Inside is canonical JSON.

| offset | size | field | meaning |
|---|---|---|---|
| 0 | 8 | magic | `EWDOC01\\n` |
| 8 | 1 | cipher | as in packs: 0 none, 1 AES-256-GCM |
| 9 | 3 | reserved | zeroes |
| 12 | 4 | generation | which encryption key of the keyset |
| 16 | 32 | salt | random, fresh for each writing: the document's key is derived from it |
| 48 | | body | sealed zstd frame of canonical JSON, at most 16 MiB |

Nonce: 12 zero bytes (each salt gives a key of its own). Associated data: repository id and the object's name, so that
one document cannot be put in another's place.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from everywhen.formats.errors import BadMagic, Truncated, UnsupportedVersion

DOCUMENT_NONCE = bytes(12)
MAX_DOCUMENT = 16 << 20

_HEADER = struct.Struct("<8sB3xI32s")
_MAGIC = b"EWDOC01\n"


@dataclass(frozen=True, slots=True)
class Envelope:
    """A sealed document."""

    cipher: int
    generation: int
    salt: bytes
    body: bytes

    def encode(self) -> bytes:
        """Header and body."""
        return _HEADER.pack(_MAGIC, self.cipher, self.generation, self.salt) + self.body

    @classmethod
    def decode(cls, data: bytes) -> Envelope:
        """Raises BadMagic, Truncated, UnsupportedVersion."""
        if len(data) < _HEADER.size:
            raise Truncated(f"document has {len(data)} of at least {_HEADER.size} bytes")
        magic, cipher, generation, salt = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise BadMagic("this is not a document of a repository")
        if cipher > 1:
            raise UnsupportedVersion(f"document with cipher {cipher}")
        return cls(cipher, generation, salt, data[_HEADER.size :])


def document_aad(repository: bytes, name: str) -> bytes:
    """Associated data of the document stored under `name`."""
    return repository + name.encode()
