# SPDX-License-Identifier: AGPL-3.0-or-later
"""Sealing: encrypt and authenticate, or (encryption `none`) append a checksum. Both add 16 bytes (I-3, I-8).

Each pack and each document has a key of its own, derived by HKDF-SHA256 (RFC 5869) from the keyset's generation and a
fresh 256-bit salt, so that counters can serve as nonces (design 4.9.4) and AES-GCM's limits per key are far away.
"""

from __future__ import annotations

from typing import Protocol

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from everywhen.formats.errors import Corrupt, UnsupportedVersion
from everywhen.formats.pack import CIPHER_AES_256_GCM, CIPHER_NONE, TAG_SIZE
from everywhen.repository.keys.keys import Keyset, derive


class Cipher(Protocol):
    """One key's worth of sealing. Safe to use from several threads."""

    def seal(self, nonce: bytes, plaintext: bytes, aad: bytes) -> bytes:
        """Ciphertext and 16 bytes of tag."""

    def open(self, nonce: bytes, sealed: bytes | memoryview, aad: bytes) -> bytes:
        """The plaintext. Raises Corrupt when any bit of it, of the nonce or of the associated data differs."""


class AesGcm:
    """AES-256-GCM (NIST SP 800-38D)."""

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)

    def seal(self, nonce: bytes, plaintext: bytes, aad: bytes) -> bytes:
        return self._aead.encrypt(nonce, plaintext, aad)

    def open(self, nonce: bytes, sealed: bytes | memoryview, aad: bytes) -> bytes:
        try:
            return self._aead.decrypt(nonce, sealed, aad)
        except InvalidTag as error:
            raise Corrupt("authentication tag wrong") from error


class Checksum:
    """No secrecy: a 128-bit keyed BLAKE3 over nonce, associated data and content finds damage, not forgery."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def seal(self, nonce: bytes, plaintext: bytes, aad: bytes) -> bytes:
        return plaintext + self._tag(nonce, plaintext, aad)

    def open(self, nonce: bytes, sealed: bytes | memoryview, aad: bytes) -> bytes:
        plaintext = bytes(sealed[:-TAG_SIZE])
        if len(sealed) < TAG_SIZE or self._tag(nonce, plaintext, aad) != sealed[-TAG_SIZE:]:
            raise Corrupt("checksum wrong")
        return plaintext

    def _tag(self, nonce: bytes, plaintext: bytes, aad: bytes) -> bytes:
        # nonce is always 12 bytes; the length of aad keeps aad and content apart
        prefix = nonce + len(aad).to_bytes(4, "little") + aad
        return blake3(prefix, key=self._key).update(plaintext).digest(TAG_SIZE)


class Ciphers:
    """All ciphers of one repository, made from its keyset."""

    def __init__(self, keyset: Keyset, kind: int) -> None:
        self._keyset = keyset
        self.kind = kind
        """CIPHER_NONE or CIPHER_AES_256_GCM: what is written; what is read must be the same."""

    @property
    def generation(self) -> int:
        """The key generation that new packs and documents are written with."""
        return self._keyset.current if self.kind == CIPHER_AES_256_GCM else 0

    def cipher(self, kind: int, generation: int, salt: bytes, purpose: str) -> Cipher:
        """The cipher of one object.

        Raises Corrupt for an object that claims less protection than the repository has (a forgery), UnsupportedVersion
        for a key generation that this keyset does not hold.
        """
        if kind != self.kind:
            raise Corrupt("the object is protected in another way than its repository")
        if kind == CIPHER_NONE:
            return Checksum(derive(self._keyset.naming_key, salt, purpose))
        secret = self._keyset.generations.get(generation)
        if secret is None:
            known = max(self._keyset.generations)
            raise UnsupportedVersion(f"key generation {generation}; this passphrase opens generations up to {known}")
        return AesGcm(derive(secret, salt, purpose))
