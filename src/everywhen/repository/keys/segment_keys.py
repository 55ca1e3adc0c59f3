# SPDX-License-Identifier: AGPL-3.0-or-later
"""The keys of journal segments: anybody who has the repository's public key can write one, who holds the keyset can read it.

For each segment a key pair is made (X25519, RFC 7748); its key follows by HKDF from the agreement with the repository's public
key. The pair's private half is forgotten as soon as the key is known, and the key when the segment is closed: whoever takes
the host's disk cannot read what was spooled before (design 4.11).
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from everywhen.formats.errors import Corrupt, UnsupportedVersion
from everywhen.formats.ids import Randomness
from everywhen.formats.keyslot import Keyset
from everywhen.formats.pack import CIPHER_AES_256_GCM, CIPHER_NONE
from everywhen.repository.keys.cipher import AesGcm, Checksum, Cipher
from everywhen.repository.keys.keyslots import derive

_PURPOSE = "journal segment"


@dataclass(frozen=True, slots=True)
class JournalRecipient:
    """What a host needs of a repository to write for it, none of it secret: `public` is empty where nothing is encrypted."""

    repository: bytes
    generation: int
    public: bytes

    @classmethod
    def of(cls, repository: bytes, keyset: Keyset) -> JournalRecipient:
        """The newest key generation's."""
        if not keyset.generations:
            return cls(repository, 0, b"")
        private = _private(repository, keyset, keyset.current)
        return cls(repository, keyset.current, private.public_key().public_bytes_raw())

    @property
    def cipher(self) -> int:
        """How groups are sealed, as in a segment's header."""
        return CIPHER_AES_256_GCM if self.public else CIPHER_NONE

    def new_segment(self, randomness: Randomness) -> tuple[bytes, Cipher]:
        """The public key that goes into a new segment's header, and what seals its groups."""
        mine = X25519PrivateKey.from_private_bytes(randomness(32))
        key = mine.public_key().public_bytes_raw()
        if not self.public:
            return key, Checksum(derive(self.repository, key, _PURPOSE))
        shared = mine.exchange(X25519PublicKey.from_public_bytes(self.public))
        return key, AesGcm(derive(shared, key + self.public, _PURPOSE))


def open_segment(keyset: Keyset, repository: bytes, cipher: int, generation: int, key: bytes) -> Cipher:
    """What opens the groups of a segment, from its header's fields. Raises Corrupt, UnsupportedVersion."""
    if cipher == CIPHER_NONE:
        if keyset.generations:
            raise Corrupt("a journal segment without encryption, for a repository that has it")
        return Checksum(derive(repository, key, _PURPOSE))
    if generation not in keyset.generations:
        raise UnsupportedVersion(f"key generation {generation} of a segment; this passphrase opens up to {keyset.current}")
    private = _private(repository, keyset, generation)
    try:
        shared = private.exchange(X25519PublicKey.from_public_bytes(key))
    except ValueError as error:
        raise Corrupt(f"segment header: its key is none: {error}") from error
    return AesGcm(derive(shared, key + private.public_key().public_bytes_raw(), _PURPOSE))


def _private(repository: bytes, keyset: Keyset, generation: int) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(derive(keyset.generations[generation], repository, "journal recipient"))
