# SPDX-License-Identifier: AGPL-3.0-or-later
"""Documents: small sealed JSON objects (I-8; layout: `formats/document.py`). What they mean is their owners' matter."""

from __future__ import annotations

from collections.abc import Iterator

from everywhen.formats import zstd
from everywhen.formats.document import DOCUMENT_NONCE, MAX_DOCUMENT, Envelope, document_aad
from everywhen.formats.errors import Corrupt
from everywhen.formats.fields import Json, canonical_json, parse_json
from everywhen.formats.ids import Randomness
from everywhen.repository.keys.cipher import Ciphers
from everywhen.repository.once import put_once
from everywhen.repository.twins import TWINS, delete_twice, get_either, twin_of
from everywhen.storage.base import ObjectInfo, ObjectStore

_TWINNED = ("vms/", "points/", "drops/", "undone/", "holds/", "settings/", "condemned/")
"""Each of them is still there when its first copy was lost."""


class Documents:
    """Reads and writes the documents of one repository. Safe to use from several threads."""

    def __init__(self, store: ObjectStore, repository: bytes, ciphers: Ciphers, randomness: Randomness) -> None:
        self.store = store
        self._repository = repository
        self._ciphers = ciphers
        self._randomness = randomness

    def put(self, name: str, value: Json, *, if_absent: bool = False) -> bytes:
        """Store `value`, durable on return; gives its canonical JSON. Raises AlreadyExists with `if_absent`."""
        plain = canonical_json(value)
        salt = self._randomness(32)
        cipher = self._ciphers.cipher(self._ciphers.kind, self._ciphers.generation, salt, "document")
        body = zstd.compress(plain, 3)
        sealed = cipher.seal(DOCUMENT_NONCE, body, document_aad(self._repository, name))
        envelope = Envelope(self._ciphers.kind, self._ciphers.generation, salt, sealed).encode()
        if if_absent:
            put_once(self.store, name, [envelope])
        else:
            self.store.put(name, [envelope])
        if name.startswith(_TWINNED):
            self.store.put(twin_of(name), [envelope])
        return plain

    def get(self, name: str) -> Json:
        """The document stored under `name`. Raises ObjectNotFound, FormatError."""
        return parse_json(name, self.get_plain(name))

    def get_plain(self, name: str) -> bytes:
        """The canonical JSON of the document. Raises ObjectNotFound, FormatError."""
        if name.startswith(_TWINNED):
            return get_either(self.store, name, lambda data: self.open(name, data))
        return self.open(name, self.store.get(name))

    def open(self, name: str, data: bytes) -> bytes:
        """The canonical JSON in the object `data` that stood under `name`. Raises FormatError."""
        envelope = Envelope.decode(data)
        cipher = self._ciphers.cipher(envelope.cipher, envelope.generation, envelope.salt, "document")
        try:
            body = cipher.open(DOCUMENT_NONCE, envelope.body, document_aad(self._repository, name))
            return zstd.decompress(body, MAX_DOCUMENT)
        except Corrupt as error:
            raise Corrupt(f"{name}: {error}") from error

    def delete(self, name: str) -> None:
        """Remove the document and its twin; no error when there is none."""
        if name.startswith(_TWINNED):
            delete_twice(self.store, name)
        else:
            self.store.delete(name)

    def names(self, prefix: str) -> Iterator[str]:
        """Names of the documents below `prefix` (ends with '/'), without the prefix."""
        yield from self.listed(prefix)

    def listed(self, prefix: str) -> dict[str, ObjectInfo | None]:
        """`names`, with what the listing says of each first copy; None for one that was lost and has a twin."""
        found: dict[str, ObjectInfo | None] = {one.name.removeprefix(prefix): one for one in self.store.list(prefix)}
        if prefix in _TWINNED:
            for twin in self.store.list(TWINS + prefix):
                found.setdefault(twin.name.removeprefix(TWINS + prefix), None)
        return found
