# SPDX-License-Identifier: AGPL-3.0-or-later
"""The keys of a repository: made by `init`, opened by a passphrase or the recovery key, changed by `key`.

Orders (I-9): a new slot is durable, twin included, before an old one goes; the superblock comes last in `create`; so
every instant has a slot that opens. The store is not trusted (design 4.11): the superblock's mac is checked with what a
slot gave, and a secret given for a repository that claims to need none is refused, so that nobody can make a client
write in the clear by swapping the superblock.

`key` beside `key` (docs/locking.md), without a lock: a rotation to generation n claims it by put-if-absent of a slot whose
id follows from n, a change of a passphrase by that of a slot whose id follows from the one that it replaces; and everybody
lists the slots again after writing one: whoever wrote later sees the other.
Not detected: a store that gives back an old, whole state of all slots; that needs a memory outside the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from everywhen.formats.errors import BadMagic, FormatError, UnsupportedVersion
from everywhen.formats.keyslot import KEY_SIZE, MAX_GENERATIONS, PASSPHRASE, RECOVERY, Keyset, KeySlot, slot_name
from everywhen.formats.recoverykey import RecoveryKeyTypo, read_recovery_key
from everywhen.formats.superblock import ENCRYPTED, ONE_WRITER, PLAIN, SUPERBLOCK_NAME, Superblock
from everywhen.repository.errors import NotARepository, RepositoryError
from everywhen.repository.keys.keyerrors import (
    AmbiguousSlot,
    KeysChanged,
    LastSlot,
    NoKeySlot,
    NoSuchSlot,
    NoSuperblock,
    NotEncrypted,
    RepositoryExists,
    UnusablePassphrase,
    WrongPassphrase,
)
from everywhen.repository.keys.keyslots import Mint, SlotTable, derive, passphrase_bytes, read_slots, unwrap
from everywhen.repository.once import put_once
from everywhen.repository.space import with_reserve
from everywhen.repository.twins import delete_twice, get_either, put_twice, twin_of
from everywhen.storage.base import AlreadyExists, ObjectNotFound, ObjectReader, ObjectStore

__all__ = [
    "Created",
    "Keyset",
    "Mint",
    "Rotated",
    "Unlocked",
    "add_passphrase",
    "add_recovery_key",
    "change_passphrase",
    "create",
    "derive",
    "list_slots",
    "read_superblock",
    "remove_slot",
    "rotate",
    "unlock",
]


@dataclass(frozen=True, slots=True)
class Unlocked:
    """A repository whose keys are known. `slot` opened it (None: not encrypted).

    `outdated`: ids of slots of older key generations. A rotation was interrupted, or somebody put an old slot back: they
    do not open what is written from now on, so it is time to `rotate` again, before the recovery key on paper is needed.
    """

    superblock: Superblock
    keyset: Keyset
    slot: KeySlot | None = None
    outdated: tuple[str, ...] = ()

    @property
    def repository_id(self) -> bytes:
        """16 bytes."""
        return self.superblock.repository_id


@dataclass(frozen=True, slots=True)
class Created:
    """A new repository. `recovery_key` is shown once and kept nowhere; None without encryption."""

    unlocked: Unlocked
    recovery_key: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Rotated:
    """A new key generation. `dropped`: the ids of all slots that no longer open, with labels where they were readable."""

    unlocked: Unlocked
    recovery_key: str = field(repr=False)
    dropped: Mapping[str, str]


def create(store: ObjectStore, mint: Mint, *, passphrase: str | None, label: str = "", one_writer: bool = False) -> Created:
    """A new repository in `store`; without a passphrase it is not encrypted. `one_writer`: the store keeps no two apart.

    Raises RepositoryExists, UnusablePassphrase. Interrupted, it leaves slots that belong to nothing, and no repository.
    """
    if _exists(store, SUPERBLOCK_NAME) or _exists(store, twin_of(SUPERBLOCK_NAME)):
        raise RepositoryExists(f"{store.url} is an Everywhen repository already. Nothing was written.")
    naming_key = mint.randomness(KEY_SIZE)
    plain = passphrase is None
    superblock = Superblock(
        repository_id=mint.randomness(16),
        family_id=mint.randomness(16),
        created=mint.created,
        encryption=PLAIN if plain else ENCRYPTED,
        naming_key=naming_key if plain else None,
        features={"read": (), "write": (ONE_WRITER,) if one_writer else (), "gc": ()},
    )
    superblock = superblock.signed(_mac_key(superblock, naming_key))
    keyset = Keyset(naming_key, {} if plain else {1: mint.randomness(KEY_SIZE)})
    slots: list[KeySlot] = []
    recovery_key = None
    if passphrase is not None:
        slots.append(mint.passphrase_slot(superblock.repository_id, keyset, passphrase, label))
        recovery, recovery_key = mint.recovery_slot(superblock.repository_id, keyset, "recovery key")
        slots.append(recovery)
    for slot in slots:
        _put(store, slot)
    try:
        put_twice(store, SUPERBLOCK_NAME, [superblock.encode()], if_absent=True)
    except AlreadyExists as error:
        for slot in slots:
            delete_twice(store, slot.name)
        raise RepositoryExists(f"{store.url}: somebody else made a repository here just now.") from error
    return Created(Unlocked(superblock, keyset, slots[0] if slots else None), recovery_key)


def read_superblock(store: ObjectReader) -> Superblock:
    """The superblock or its twin. Raises NotARepository, NoSuperblock, UnsupportedVersion; its mac is checked by `unlock`."""
    try:
        return get_either(store, SUPERBLOCK_NAME, Superblock.decode)
    except UnsupportedVersion:
        raise
    except FormatError as error:
        raise NoSuperblock(
            f'{store.url}: "{SUPERBLOCK_NAME}" and its twin cannot be read ({error}). The backups are not touched; that file '
            "from a copy or replica of this repository opens them again."
        ) from error
    except ObjectNotFound as error:
        raise NotARepository(f'{store.url} is not an Everywhen repository (no object "{SUPERBLOCK_NAME}").') from error


def unlock(store: ObjectReader, superblock: Superblock, secret: str | None) -> Unlocked:
    """The keys, opened by a passphrase or by the text of the recovery key; by None where nothing is encrypted.

    Raises WrongPassphrase, UnusablePassphrase, NotEncrypted, NoKeySlot, and FormatError: UnsupportedVersion for what only
    a newer program can read, Corrupt for a superblock that the holder of the keys did not write.
    """
    superblock.require("read")
    if superblock.naming_key is not None:
        if secret is not None:
            raise NotEncrypted(
                f"{store.url} says that it is not encrypted, but a passphrase was given. Nothing was touched. If it was "
                "encrypted once, somebody has replaced its superblock; if not, leave the passphrase out (--passphrase-file, "
                "EVERYWHEN_PASSPHRASE_FILE)."
            )
        superblock.check_mac(_mac_key(superblock, superblock.naming_key))
        return Unlocked(superblock, Keyset(superblock.naming_key, {}))
    if secret is None:
        raise UnusablePassphrase(f"{store.url} is encrypted: its repository passphrase or recovery key is needed.")
    table = read_slots(store, superblock.repository_id)
    if not table.slots:
        reasons = "".join(f" {error}." for error in table.unreadable.values())
        raise NoKeySlot(
            f"{store.url}: no key slot can be read.{reasons} The backups are not touched; a copy of keys/ or of a replica's "
            "keys/ opens them again."
        )
    slot, keyset = _try_slots(store.url, superblock, table, secret)
    superblock.check_mac(_mac_key(superblock, keyset.naming_key))
    outdated = tuple(old.slot for old in table.slots if old.generation < table.newest)
    return Unlocked(superblock, keyset, slot, outdated)


def _try_slots(url: str, superblock: Superblock, table: SlotTable, secret: str) -> tuple[KeySlot, Keyset]:
    hint = ""
    secrets = {PASSPHRASE: passphrase_bytes(secret)}
    try:
        secrets[RECOVERY] = read_recovery_key(secret)
    except BadMagic:
        pass  # a passphrase
    except RecoveryKeyTypo as typo:
        hint = f" If it was the {typo}." if len(typo.groups) <= 4 else ""
    except FormatError as error:
        hint = f" If it was meant as one: {error}."
    # A recovery key is tried first where it fits: that takes microseconds. The sort is stable: newest slots first.
    fitting = sorted((slot for slot in table.slots if slot.kind in secrets), key=lambda slot: slot.kind != RECOVERY)
    for slot in fitting:
        keyset = unwrap(slot, secrets[slot.kind])
        if keyset is not None:
            return slot, keyset
    slots = "slot" if len(fitting) == 1 else "slots"
    raise WrongPassphrase(
        f"Wrong repository passphrase for {url} ({superblock.repository_id.hex()[:4]}…). {len(fitting)} key {slots} tried."
        f"{hint}",
        len(fitting),
    )


def list_slots(store: ObjectReader, superblock: Superblock) -> SlotTable:
    """All slots. What they say of themselves (label, time) is proven only for those that one can open."""
    return read_slots(store, superblock.repository_id)


def add_passphrase(store: ObjectStore, unlocked: Unlocked, mint: Mint, passphrase: str, *, label: str = "") -> KeySlot:
    """One more passphrase. Raises KeysChanged, UnusablePassphrase, NotEncrypted."""
    _current_slots(store, unlocked)
    slot = mint.passphrase_slot(unlocked.repository_id, unlocked.keyset, passphrase, label)
    _add(store, unlocked, slot)
    return slot


def add_recovery_key(store: ObjectStore, unlocked: Unlocked, mint: Mint, *, label: str = "recovery key") -> tuple[KeySlot, str]:
    """One more recovery key and its text, shown once. Older ones go on opening until they are removed."""
    _current_slots(store, unlocked)
    slot, text = mint.recovery_slot(unlocked.repository_id, unlocked.keyset, label)
    _add(store, unlocked, slot)
    return slot, text


def change_passphrase(
    store: ObjectStore, unlocked: Unlocked, mint: Mint, passphrase: str, *, replaces: str | None = None
) -> KeySlot:
    """A new passphrase in place of another: of the slot `replaces`, else of the one that opened the repository.

    Opened by the recovery key, the only passphrase there is gets replaced; AmbiguousSlot when there are several. When it
    is interrupted, both the old and the new one may open; then KeysChanged says what to do whenever somebody tries to
    replace the old one again. Raises NoSuchSlot, KeysChanged, UnusablePassphrase.
    """
    table = _current_slots(store, unlocked)
    passphrases = {slot.slot: slot for slot in table.slots if slot.kind == PASSPHRASE}
    if replaces is None:
        if unlocked.slot is not None and unlocked.slot.kind == PASSPHRASE:
            replaces = unlocked.slot.slot
        elif len(passphrases) > 1:
            names = ", ".join(f'{slot.slot} "{slot.label}"' for slot in passphrases.values())
            raise AmbiguousSlot(f"Which passphrase is to be replaced? There are: {names}. Nothing was changed.")
        else:
            replaces = next(iter(passphrases), None)
    if replaces is not None and replaces not in passphrases:
        raise NoSuchSlot(f"There is no passphrase slot {replaces} (any more). Nothing was changed.")
    label = "" if replaces is None else passphrases[replaces].label
    claim = _claim(unlocked.keyset, unlocked.repository_id, f"successor of {replaces}")
    slot = mint.passphrase_slot(unlocked.repository_id, unlocked.keyset, passphrase, label, slot_id=claim)
    try:
        _add(store, unlocked, slot)
    except AlreadyExists as error:
        raise KeysChanged(_BEING_CHANGED.format(old=replaces, new=claim)) from error
    if replaces is not None:
        _replace(store, unlocked, slot, replaces)
    return slot


_BEING_CHANGED = (
    "The passphrase of slot {old} is being changed by somebody else, or a change was interrupted: slot {new} is there to "
    "replace it. Nothing was changed, both passphrases open. If nobody is at it: everywhen key remove {old}, when you know "
    "the new passphrase, else everywhen key remove {new} and change again."
)


def _replace(store: ObjectStore, unlocked: Unlocked, slot: KeySlot, old: str) -> None:
    """Let `slot`, which is there, be the only successor of `old`. Raises KeysChanged."""
    if old not in read_slots(store, unlocked.repository_id).ids:
        # Our claim was free because its first owner is through with it: we were held up for a whole change, or longer.
        delete_twice(store, slot.name)
        raise KeysChanged(f"The passphrase of slot {old} was changed by somebody else just now. Nothing was changed.")
    delete_twice(store, slot_name(old))
    # Somebody may have removed ours, while the old one was still there, as not the last.
    if not read_slots(store, unlocked.repository_id).slots:
        _put(store, slot)


def _claim(keyset: Keyset, repository_id: bytes, purpose: str) -> str:
    """The id of the slot by which somebody claims what only one may do: whoever comes second finds it taken."""
    return derive(keyset.naming_key, repository_id, purpose)[:8].hex()


def remove_slot(store: ObjectStore, unlocked: Unlocked, slot_id: str, *, force: bool = False) -> None:
    """Removes one slot. The last one never goes; the last passphrase and the last recovery key only with `force`.

    Raises NoSuchSlot, LastSlot. A secret that was known to somebody who also has a copy of the old slot still opens that
    copy: against a leaked secret `rotate` is the answer.
    """
    _demand_encrypted(unlocked)
    unlocked.superblock.require("write")
    table = read_slots(store, unlocked.repository_id)
    if slot_id not in table.ids:
        raise NoSuchSlot(f"There is no key slot {slot_id}. Nothing was changed.")
    going = next((slot for slot in table.slots if slot.slot == slot_id), None)
    if going is not None and going.generation == table.newest:
        _refuse_last(table, going, force=force)
    delete_twice(store, slot_name(slot_id))
    # Two people may have removed the last two slots at once: whoever lists last puts his one back.
    if going is not None and not read_slots(store, unlocked.repository_id).slots:
        _put(store, going)
        raise LastSlot(f"Somebody else removed the other key slots at the same time: {slot_id} was put back.")


def _refuse_last(table: SlotTable, going: KeySlot, *, force: bool) -> None:
    staying = [slot for slot in table.slots if slot.slot != going.slot and slot.generation == table.newest]
    if not staying:
        raise LastSlot(
            f"{going.slot} is the last key slot: without it nobody could open this repository again. Nothing was removed."
        )
    if not force and going.kind not in {slot.kind for slot in staying}:
        only, adding = (
            ("passphrase", "Add another one first")
            if going.kind == PASSPHRASE
            else ("recovery key", "Without one a forgotten passphrase is the end. Make a new one first")
        )
        raise LastSlot(f"{going.slot} is the last {only} slot. Nothing was removed. {adding}, or insist with --force.")


def rotate(store: ObjectStore, unlocked: Unlocked, mint: Mint, passphrases: Mapping[str, str]) -> Rotated:
    """A new encryption key for all that is written from now on, and a new recovery key.

    `passphrases`: label -> passphrase, at least one, old or new. Every other slot is dropped: its holder can still read
    what he copied before, nothing newer. What is stored already is not encrypted again. Processes that are running go on
    with the generation they know; it stays readable. Raises KeysChanged, UnusablePassphrase.
    """
    table = _current_slots(store, unlocked)
    if not passphrases:
        raise UnusablePassphrase("A rotation needs at least one passphrase that goes on opening the repository.")
    if len(unlocked.keyset.generations) >= MAX_GENERATIONS:
        raise RepositoryError(f"This repository has had {MAX_GENERATIONS} key generations, which is the limit.")
    number = unlocked.keyset.current + 1
    keyset = replace(unlocked.keyset, generations={**unlocked.keyset.generations, number: mint.randomness(KEY_SIZE)})
    labels = {slot.slot: slot.label for slot in table.slots}
    claim = _claim(keyset, unlocked.repository_id, f"rotation to {number}")
    slots = [
        mint.passphrase_slot(unlocked.repository_id, keyset, text, label, slot_id=None if at else claim)
        for at, (label, text) in enumerate(passphrases.items())
    ]
    recovery, recovery_key = mint.recovery_slot(unlocked.repository_id, keyset, "recovery key")
    slots.append(recovery)
    try:
        _put(store, slots[0])
    except AlreadyExists as error:
        raise KeysChanged(_ROTATED) from error
    for slot in slots[1:]:
        _put(store, slot)
    dropped = _drop_older(store, slots)
    return Rotated(
        Unlocked(unlocked.superblock, keyset, slots[0]), recovery_key, {slot: labels.get(slot, "") for slot in dropped}
    )


_ROTATED = (
    "The keys of this repository were rotated by somebody else. Nothing was changed. Unlock it again with a passphrase of "
    "the new generation (everywhen key list)."
)


def _drop_older(store: ObjectStore, slots: list[KeySlot]) -> list[str]:
    """Deletes all slots but these, until a listing shows no other (somebody may be adding one meanwhile)."""
    ours = {slot.slot for slot in slots}
    repository_id, number = slots[0].repository_id, slots[0].generation
    dropped: list[str] = []
    while True:
        table = read_slots(store, repository_id)
        if table.newest > number:
            # Ours may have come after the other's last listing. Once older ones are gone, ours stay: the other has seen
            # them, and whoever merely planted a slot that claims to be newer must not get the last good one deleted.
            for slot in () if dropped else ours:
                delete_twice(store, slot_name(slot))
            raise KeysChanged(_ROTATED)
        # A slot of our generation that is not ours was added by somebody who opened one of ours already: it stays.
        older = sorted({slot.slot for slot in table.slots if slot.generation < number} | set(table.unreadable))
        if not older:
            return dropped
        for slot in older:
            delete_twice(store, slot_name(slot))
        dropped += older


def _current_slots(store: ObjectReader, unlocked: Unlocked) -> SlotTable:
    _demand_encrypted(unlocked)
    unlocked.superblock.require("write")
    table = read_slots(store, unlocked.repository_id)
    if table.newest > unlocked.keyset.current:
        raise KeysChanged(_ROTATED)
    return table


def _add(store: ObjectStore, unlocked: Unlocked, slot: KeySlot) -> None:
    _put(store, slot)
    if read_slots(store, unlocked.repository_id).newest > slot.generation:
        delete_twice(store, slot.name)  # it would open, but not what is written from now on
        raise KeysChanged(_ROTATED)


def _put(store: ObjectStore, slot: KeySlot) -> None:
    """Both copies, durable on return. Raises AlreadyExists when another slot of that id is there."""
    encoded = slot.encode()

    def both() -> None:
        put_once(store, slot.name, [encoded])
        store.put(twin_of(slot.name), [encoded])

    with_reserve(store, both)


def _demand_encrypted(unlocked: Unlocked) -> None:
    if not unlocked.superblock.encrypted:
        raise NotEncrypted("This repository is not encrypted: it has no keys to change.")


def _mac_key(superblock: Superblock, naming_key: bytes) -> bytes:
    return derive(naming_key, superblock.repository_id, "superblock mac")


def _exists(store: ObjectReader, name: str) -> bool:
    try:
        store.size(name)
    except ObjectNotFound:
        return False
    return True
