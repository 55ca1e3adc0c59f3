# SPDX-License-Identifier: AGPL-3.0-or-later
"""Key slots one by one: secrets to keys (Argon2id, RFC 9106; HKDF, RFC 5869), wrapping, and the slots in a store.

Slots come from a store that is not trusted: their parameters are bounded by the layout before anything is derived, and
nothing a slot says is believed before its tag was right.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from argon2.exceptions import HashingError
from argon2.low_level import Type, hash_secret_raw
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from everywhen.formats import recoverykey
from everywhen.formats.cleartext import rfc3339
from everywhen.formats.errors import Corrupt, FormatError
from everywhen.formats.ids import Randomness
from everywhen.formats.keyslot import KEY_SIZE, NONCE_SIZE, SALT_SIZE, Argon2id, HkdfSha256, Keyset, KeySlot, slot_name
from everywhen.repository.errors import RepositoryError
from everywhen.repository.keys.keyerrors import UnusablePassphrase
from everywhen.repository.twins import get_either, twin_of
from everywhen.storage.base import ObjectNotFound, ObjectReader

_SLOT_ID = re.compile(r"[0-9a-f]{16}")


class Cost(NamedTuple):
    """What one guess at a passphrase costs: memory in KiB, passes over it, lanes."""

    memory_kib: int
    iterations: int
    lanes: int


DEFAULT_COST = Cost(65536, 3, 4)
"""RFC 9106, 4, second recommended option: 64 MiB, so that a host with 8 GB does not feel it; 0.12 s on 2 cores."""


@dataclass(frozen=True, slots=True)
class Mint:
    """What new keys and slots are made of: randomness, the time (nanoseconds since 1970), the cost of a guess."""

    randomness: Randomness
    now_ns: int
    cost: Cost = DEFAULT_COST

    @property
    def created(self) -> str:
        """The time as slots and superblocks have it."""
        return rfc3339(self.now_ns)

    def passphrase_slot(
        self, repository_id: bytes, keyset: Keyset, passphrase: str, label: str, *, slot_id: str | None = None
    ) -> KeySlot:
        """A new slot that `passphrase` opens, of a random id unless one is given. Raises UnusablePassphrase."""
        secret = passphrase_bytes(passphrase)
        blank = self._blank(repository_id, keyset, Argon2id(*self.cost, salt=self.randomness(SALT_SIZE)), label)
        return self._wrap(blank if slot_id is None else replace(blank, slot=slot_id), secret, keyset)

    def recovery_slot(self, repository_id: bytes, keyset: Keyset, label: str) -> tuple[KeySlot, str]:
        """A new slot and the recovery key that opens it, as text to print."""
        key = self.randomness(recoverykey.KEY_SIZE)
        kdf = HkdfSha256(self.randomness(SALT_SIZE))
        slot = self._wrap(self._blank(repository_id, keyset, kdf, label), key, keyset)
        return slot, recoverykey.write_recovery_key(key)

    def _blank(self, repository_id: bytes, keyset: Keyset, kdf: Argon2id | HkdfSha256, label: str) -> KeySlot:
        return KeySlot(repository_id, self.randomness(8).hex(), self.created, label, keyset.current, kdf)

    def _wrap(self, blank: KeySlot, secret: bytes, keyset: Keyset) -> KeySlot:
        nonce = self.randomness(NONCE_SIZE)
        wrapped = AESGCM(_wrapping_key(blank, secret)).encrypt(nonce, keyset.encode(), blank.associated_data())
        return replace(blank, nonce=nonce, wrapped=wrapped)


def derive(secret: bytes, salt: bytes, purpose: str) -> bytes:
    """A key of 32 bytes for one purpose, by HKDF-SHA256; different purposes or salts give unrelated keys."""
    info = b"everywhen 1 " + purpose.encode()
    return HKDF(algorithm=SHA256(), length=KEY_SIZE, salt=salt, info=info).derive(secret)


def passphrase_bytes(passphrase: str) -> bytes:
    """NFC, so that a passphrase typed on another keyboard or system is the same one. Raises UnusablePassphrase."""
    if not passphrase:
        raise UnusablePassphrase("The repository passphrase is empty. Nothing was touched.")
    try:
        return unicodedata.normalize("NFC", passphrase).encode()
    except UnicodeEncodeError as error:
        raise UnusablePassphrase("The repository passphrase is not text in UTF-8. Nothing was touched.") from error


def unwrap(slot: KeySlot, secret: bytes) -> Keyset | None:
    """The keyset, or None when this is not the slot's secret.

    Raises UnsupportedVersion for a keyset of a newer program, RepositoryError when this machine lacks the memory.
    """
    try:
        raw = AESGCM(_wrapping_key(slot, secret)).decrypt(slot.nonce, slot.wrapped, slot.associated_data())
    except InvalidTag:
        return None
    keyset = Keyset.decode(raw)
    if keyset.current != slot.generation:
        raise Corrupt(f"{slot.name}: the keyset is not of the generation that the slot names")
    return keyset


def _wrapping_key(slot: KeySlot, secret: bytes) -> bytes:
    kdf = slot.kdf
    if isinstance(kdf, HkdfSha256):
        return derive(secret, kdf.salt, "recovery slot")
    try:
        return hash_secret_raw(secret, kdf.salt, kdf.iterations, kdf.memory_kib, kdf.lanes, KEY_SIZE, Type.ID)
    except HashingError as error:
        raise RepositoryError(
            f"{slot.name} could not be tried: Argon2id with {kdf.memory_kib >> 10} MiB failed ({error}). "
            "Nothing was touched. Close other programs, or open the repository on a machine with more memory."
        ) from error


@dataclass(frozen=True, slots=True)
class SlotTable:
    """The slots of a repository as found in its store.

    `slots`: the newest generation first, then the latest. `unreadable`: slot id -> what is wrong with both its copies.
    """

    slots: tuple[KeySlot, ...]
    unreadable: Mapping[str, FormatError]

    @property
    def newest(self) -> int:
        """The newest key generation that any slot names; 0 without slots."""
        return max((slot.generation for slot in self.slots), default=0)

    @property
    def ids(self) -> set[str]:
        """Ids of all slots, readable or not."""
        return {slot.slot for slot in self.slots} | set(self.unreadable)


def read_slots(store: ObjectReader, repository_id: bytes) -> SlotTable:
    """Every slot of which at least one copy is there."""
    slots: list[KeySlot] = []
    unreadable: dict[str, FormatError] = {}
    listed = {line.name.rpartition("/")[2] for folder in ("keys/", twin_of("keys/")) for line in store.list(folder)}
    for slot_id in sorted(name for name in listed if _SLOT_ID.fullmatch(name)):
        try:
            slot = get_either(store, slot_name(slot_id), partial(KeySlot.decode, slot_id))
        except ObjectNotFound:
            continue  # removed since it was listed
        except FormatError as error:
            unreadable[slot_id] = error
            continue
        if slot.repository_id == repository_id:
            slots.append(slot)
        else:
            unreadable[slot_id] = Corrupt(f"{slot.name} was left by an init that was interrupted, or is of another repository")
    slots.sort(key=lambda slot: (slot.generation, slot.created, slot.slot), reverse=True)
    return SlotTable(tuple(slots), unreadable)
