# SPDX-License-Identifier: AGPL-3.0-or-later
"""Keys of a repository: who can open it, after every operation and with any one object damaged [I-8]."""

# ruff: noqa: S106  (passphrases of tests)

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import random
from collections.abc import Iterator

import pytest
from argon2.exceptions import HashingError

from everywhen.formats.errors import Corrupt, UnsupportedVersion
from everywhen.formats.keyslot import PASSPHRASE, RECOVERY, KeySlot
from everywhen.formats.superblock import PLAIN, Superblock
from everywhen.repository.errors import NotARepository, RepositoryError
from everywhen.repository.keys import keys, keyslots
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
from everywhen.services.failures import Exit
from everywhen.services.translation import as_failure
from everywhen.storage.base import ObjectStore
from everywhen.storage.memory import MemoryStore

NOW_NS = 1_795_257_125_000_000_000
CHEAP = keyslots.Cost(8, 1, 1)
_CHANCE = random.Random(7)
MINT = keys.Mint(_CHANCE.randbytes, NOW_NS, CHEAP)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def created(store: MemoryStore) -> keys.Created:
    return keys.create(store, MINT, passphrase="first", label="desk")


def opened(store: ObjectStore, secret: str | None) -> keys.Unlocked:
    return keys.unlock(store, keys.read_superblock(store), secret)


def opens(store: ObjectStore, secret: str) -> bool:
    try:
        opened(store, secret)
    except (WrongPassphrase, NoKeySlot):
        return False
    return True


def later(seconds: int) -> keys.Mint:
    return dataclasses.replace(MINT, now_ns=NOW_NS + seconds * 10**9)


def table(store: ObjectStore) -> keyslots.SlotTable:
    return keys.list_slots(store, keys.read_superblock(store))


# init and unlock


def test_passphrase_and_recovery_key_open_the_same_keyset(store: MemoryStore, created: keys.Created) -> None:
    assert created.recovery_key is not None
    by_passphrase, by_recovery = opened(store, "first"), opened(store, created.recovery_key.lower())
    assert by_passphrase.keyset == by_recovery.keyset == created.unlocked.keyset
    assert by_passphrase.slot is not None
    assert by_recovery.slot is not None
    assert (by_passphrase.slot.kind, by_passphrase.slot.label) == (PASSPHRASE, "desk")
    assert by_recovery.slot.kind == RECOVERY
    assert by_passphrase.keyset.current == 1
    assert by_passphrase.outdated == ()


def test_the_real_cost_of_a_guess_is_64_mib(store: MemoryStore) -> None:
    keys.create(store, keys.Mint(_CHANCE.randbytes, NOW_NS), passphrase="first")
    (slot,) = (slot for slot in table(store).slots if slot.kind == PASSPHRASE)
    assert slot.kdf.fields().items() >= {"name": "argon2id", "memory_kib": 65536, "iterations": 3, "lanes": 4}.items()
    assert opens(store, "first")


def test_nothing_stored_or_shown_tells_a_secret(store: MemoryStore, created: keys.Created) -> None:
    keyset, shown = created.unlocked.keyset, repr(created) + repr(opened(store, "first"))
    stored = b"".join(value.content for value in store.snapshot().values())
    assert created.recovery_key is not None
    for secret in (keyset.naming_key, keyset.generations[1], b"first", created.recovery_key.encode()):
        assert secret not in stored
        assert secret.hex().encode() not in stored
        assert repr(secret)[2:-1] not in shown
        assert secret.hex() not in shown


def test_every_object_has_a_twin(store: MemoryStore, created: keys.Created) -> None:
    found = {name: value.content for name, value in store.snapshot().items()}
    firsts = {name: content for name, content in found.items() if not name.startswith("twins/")}
    assert len(firsts) == 3
    assert {f"twins/{name}": content for name, content in firsts.items()}.items() <= found.items()
    assert len(found) == 6


def test_a_wrong_passphrase_says_how_many_slots_were_tried(store: MemoryStore, created: keys.Created) -> None:
    keys.add_passphrase(store, created.unlocked, MINT, "second")
    with pytest.raises(WrongPassphrase) as caught:
        opened(store, "wrong")
    word = created.unlocked.repository_id.hex()[:4]
    assert str(caught.value) == (f"Wrong repository passphrase for memory: ({word}…). 2 key slots tried.")
    assert caught.value.tried == 2


def test_a_typo_in_the_recovery_key_is_named(store: MemoryStore, created: keys.Created) -> None:
    assert created.recovery_key is not None
    right = created.recovery_key[9]
    with pytest.raises(WrongPassphrase, match=r"If it was the recovery key: please check group 2 of 8"):
        opened(store, created.recovery_key[:9] + ("X" if right != "X" else "Y") + created.recovery_key[10:])


def test_another_repositorys_recovery_key_opens_nothing(store: MemoryStore, created: keys.Created) -> None:
    other = keys.create(MemoryStore(), MINT, passphrase="first")
    with pytest.raises(WrongPassphrase) as caught:
        opened(store, other.recovery_key)
    assert caught.value.tried == 2


def test_a_passphrase_is_the_same_however_its_letters_are_composed(store: MemoryStore) -> None:
    keys.create(store, MINT, passphrase="Schl\u00fcssel")
    assert opens(store, "Schlu\u0308ssel")


@pytest.mark.parametrize("secret", ["", "\udcff"])
def test_an_unusable_passphrase_writes_nothing(store: MemoryStore, secret: str) -> None:
    with pytest.raises(UnusablePassphrase):
        keys.create(store, MINT, passphrase=secret)
    assert not store.snapshot()


@pytest.mark.parametrize("secret", ["", "\udcff", None])
def test_an_unusable_passphrase_is_not_a_wrong_one(store: MemoryStore, created: keys.Created, secret: str | None) -> None:
    with pytest.raises(UnusablePassphrase):
        opened(store, secret)


def test_without_encryption_no_secret_is_wanted(store: MemoryStore) -> None:
    created = keys.create(store, MINT, passphrase=None)
    assert created.recovery_key is None
    unlocked = opened(store, None)
    assert unlocked.keyset == created.unlocked.keyset
    assert unlocked.keyset.current == 0
    assert set(store.snapshot()) == {"everywhen", "twins/everywhen"}
    with pytest.raises(NotEncrypted):
        keys.add_passphrase(store, unlocked, MINT, "a")
    with pytest.raises(NotEncrypted):
        keys.remove_slot(store, unlocked, "a" * 16)


def test_nobody_is_made_to_write_in_the_clear_by_a_swapped_superblock(store: MemoryStore, created: keys.Created) -> None:
    forged = dataclasses.replace(created.unlocked.superblock, encryption=PLAIN, naming_key=b"k" * 32)
    forged = forged.signed(keys.derive(b"k" * 32, forged.repository_id, "superblock mac"))
    store.put("everywhen", [forged.encode()])
    with pytest.raises(NotEncrypted, match="Nothing was touched"):
        opened(store, "first")


def test_a_forged_superblock_is_noticed(store: MemoryStore, created: keys.Created) -> None:
    forged = dataclasses.replace(created.unlocked.superblock, family_id=b"x" * 16)
    store.put("everywhen", [forged.encode()])
    with pytest.raises(Corrupt, match="not the one that was written with these keys"):
        opened(store, "first")


def test_features_of_a_newer_program_refuse_reading_or_writing(store: MemoryStore, created: keys.Created) -> None:
    def featured(kind: str) -> Superblock:
        block = created.unlocked.superblock
        block = dataclasses.replace(block, features={**block.features, kind: ("x",)})  # type: ignore[dict-item]
        return block.signed(keys.derive(created.unlocked.keyset.naming_key, block.repository_id, "superblock mac"))

    with pytest.raises(UnsupportedVersion):
        keys.unlock(store, featured("read"), "first")
    unlocked = keys.unlock(store, featured("write"), "first")
    before = store.snapshot()
    for change in (
        lambda: keys.add_passphrase(store, unlocked, MINT, "a"),
        lambda: keys.rotate(store, unlocked, MINT, {"": "a"}),
        lambda: keys.remove_slot(store, unlocked, table(store).slots[0].slot),
    ):
        with pytest.raises(UnsupportedVersion):
            change()
    assert store.snapshot() == before


def test_a_folder_that_is_no_repository(store: MemoryStore) -> None:
    with pytest.raises(NotARepository, match=r'memory: is not an Everywhen repository \(no object "everywhen"\)'):
        keys.read_superblock(store)


def test_init_does_not_touch_a_repository(store: MemoryStore, created: keys.Created) -> None:
    for lost in (None, "everywhen", "twins/everywhen"):
        saved = store.snapshot()
        if lost:
            store.delete(lost)
        before = store.snapshot()
        with pytest.raises(RepositoryExists):
            keys.create(store, MINT, passphrase="thief")
        assert store.snapshot() == before
        store.restore(saved)


# damage


def ruined(raw: bytes) -> Iterator[bytes | None]:
    yield None
    yield raw[:-3]
    yield b""
    yield raw.replace(b'"created"', b'"creatad"')
    yield bytes(len(raw))


def test_any_one_copy_of_any_object_may_be_lost_or_ruined(store: MemoryStore, created: keys.Created) -> None:
    assert created.recovery_key is not None
    whole = store.snapshot()
    for name in whole:
        for content in ruined(whole[name].content):
            store.restore(whole)
            store.delete(name)
            if content is not None:
                store.put(name, [content])
            assert opened(store, "first").keyset == created.unlocked.keyset
            assert opened(store, created.recovery_key).keyset == created.unlocked.keyset


def test_a_ruined_slot_is_no_wrong_passphrase(store: MemoryStore, created: keys.Created) -> None:
    for name in store.snapshot():
        if "keys/" in name:
            store.put(name, [b"{ruined"])
    with pytest.raises(NoKeySlot, match="ends in the middle"):
        opened(store, "first")
    assert len(table(store).unreadable) == 2


def test_a_superblock_with_both_copies_ruined_says_what_is_wrong(store: MemoryStore, created: keys.Created) -> None:
    store.put("everywhen", [b'{"format": 2, "magic": "everywhen repository"}\n'])
    store.put("twins/everywhen", [b""])
    with pytest.raises(UnsupportedVersion, match="format 2"):
        keys.read_superblock(store)
    store.put("everywhen", [b"{ruined"])
    with pytest.raises(NoSuperblock, match=r"its twin cannot be read .* from a copy or replica") as ruined:
        keys.read_superblock(store)
    failure = as_failure(ruined.value, url="memory:")
    assert failure is not None
    assert (failure.exit, failure.do) == (Exit.DAMAGED, []), "verify cannot open it, either"


def test_slots_of_another_repository_open_nothing_and_do_not_count(store: MemoryStore, created: keys.Created) -> None:
    other = MemoryStore()
    keys.create(other, MINT, passphrase="foreign")
    for name, value in other.snapshot().items():
        if "keys/" in name:
            store.put(name, [value.content])
    assert not opens(store, "foreign")
    assert len(table(store).slots) == 2
    assert len(table(store).unreadable) == 2
    slot = created.unlocked.slot
    assert slot is not None
    keys.remove_slot(store, created.unlocked, slot.slot, force=True)
    (last,) = table(store).slots
    with pytest.raises(LastSlot):
        keys.remove_slot(store, created.unlocked, last.slot, force=True)
    for leftover in table(store).unreadable:
        keys.remove_slot(store, created.unlocked, leftover)
    assert table(store).ids == {last.slot}


def test_names_below_keys_that_are_no_slots_are_ignored(store: MemoryStore, created: keys.Created) -> None:
    store.put("keys/readme.txt", [b"?"])
    assert opens(store, "first")
    assert len(table(store).ids) == 2


# changing keys


def test_added_secrets_open_and_removed_ones_do_not(store: MemoryStore, created: keys.Created) -> None:
    second = keys.add_passphrase(store, created.unlocked, later(1), "second", label="Ann")
    third, text = keys.add_recovery_key(store, created.unlocked, later(2))
    assert opened(store, "second").slot == second
    assert opened(store, text).slot == third
    assert [(slot.kind, slot.label, slot.created[-3:]) for slot in table(store).slots[:2]] == [
        (RECOVERY, "recovery key", "07Z"),
        (PASSPHRASE, "Ann", "06Z"),
    ]
    keys.remove_slot(store, created.unlocked, second.slot)
    assert not opens(store, "second")
    assert opens(store, "first")
    assert not [name for name in store.snapshot() if second.slot in name]
    with pytest.raises(NoSuchSlot):
        keys.remove_slot(store, created.unlocked, second.slot)


def test_the_last_of_a_kind_goes_only_by_force_and_the_last_of_all_never(store: MemoryStore, created: keys.Created) -> None:
    unlocked = created.unlocked
    by_kind = {slot.kind: slot.slot for slot in table(store).slots}
    before = store.snapshot()
    with pytest.raises(LastSlot, match="last passphrase slot"):
        keys.remove_slot(store, unlocked, by_kind[PASSPHRASE])
    with pytest.raises(LastSlot, match="last recovery key slot"):
        keys.remove_slot(store, unlocked, by_kind[RECOVERY])
    assert store.snapshot() == before
    keys.remove_slot(store, unlocked, by_kind[RECOVERY], force=True)
    with pytest.raises(LastSlot, match="last key slot"):
        keys.remove_slot(store, unlocked, by_kind[PASSPHRASE], force=True)
    assert opens(store, "first")


def test_a_changed_passphrase_replaces_the_one_that_opened(store: MemoryStore, created: keys.Created) -> None:
    keys.add_passphrase(store, created.unlocked, MINT, "colleague")
    new = keys.change_passphrase(store, opened(store, "first"), later(5), "new")
    assert new.label == "desk"
    assert [opens(store, secret) for secret in ("first", "new", "colleague")] == [False, True, True]


def test_the_recovery_key_replaces_a_lost_passphrase(store: MemoryStore, created: keys.Created) -> None:
    assert created.recovery_key is not None
    keys.change_passphrase(store, opened(store, created.recovery_key), MINT, "found")
    assert [opens(store, secret) for secret in ("first", "found", created.recovery_key)] == [False, True, True]
    keys.add_passphrase(store, opened(store, "found"), MINT, "colleague", label="Bob")
    unlocked = opened(store, created.recovery_key)
    with pytest.raises(AmbiguousSlot, match='"Bob"'):
        keys.change_passphrase(store, unlocked, MINT, "x")
    bob = opened(store, "colleague").slot
    assert bob is not None
    keys.change_passphrase(store, unlocked, MINT, "y", replaces=bob.slot)
    assert [opens(store, secret) for secret in ("found", "colleague", "y")] == [True, False, True]
    with pytest.raises(NoSuchSlot):
        keys.change_passphrase(store, unlocked, MINT, "z", replaces=bob.slot)
    assert not opens(store, "z")


def test_a_passphrase_can_be_made_when_none_is_left(store: MemoryStore, created: keys.Created) -> None:
    assert created.recovery_key is not None
    slot = created.unlocked.slot
    assert slot is not None
    keys.remove_slot(store, created.unlocked, slot.slot, force=True)
    keys.change_passphrase(store, opened(store, created.recovery_key), MINT, "again")
    assert opens(store, "again")


def test_rotation_keeps_what_was_named_and_drops_the_rest(store: MemoryStore, created: keys.Created) -> None:
    assert created.recovery_key is not None
    keys.add_passphrase(store, created.unlocked, MINT, "leaver", label="Eve")
    old_ids = table(store).ids
    rotated = keys.rotate(store, opened(store, "first"), MINT, {"desk": "first", "new": "also"})
    assert [opens(store, secret) for secret in ("first", "also", rotated.recovery_key)] == [True, True, True]
    assert [opens(store, secret) for secret in ("leaver", created.recovery_key)] == [False, False]
    assert set(rotated.dropped) == old_ids
    assert sorted(rotated.dropped.values()) == ["Eve", "desk", "recovery key"]
    keyset = opened(store, "also").keyset
    assert keyset == opened(store, rotated.recovery_key).keyset == rotated.unlocked.keyset
    assert keyset.current == 2
    assert keyset.generations[1] == created.unlocked.keyset.generations[1]
    assert keyset.generations[2] != keyset.generations[1]
    assert keyset.naming_key == created.unlocked.keyset.naming_key
    assert len(store.snapshot()) == 2 * (1 + 3)
    assert keys.rotate(store, rotated.unlocked, MINT, {"": "x"}).unlocked.keyset.current == 3


def test_rotation_needs_a_passphrase_that_can_be_used(store: MemoryStore, created: keys.Created) -> None:
    before = store.snapshot()
    for passphrases in ({}, {"a": "good", "b": ""}):
        with pytest.raises(UnusablePassphrase):
            keys.rotate(store, created.unlocked, MINT, passphrases)
    assert store.snapshot() == before


def test_parts_of_the_keyset_that_only_a_newer_program_knows_are_not_lost(store: MemoryStore, created: keys.Created) -> None:
    keyset = dataclasses.replace(created.unlocked.keyset, extra={"agent_key": "ab"})
    newer = dataclasses.replace(created.unlocked, keyset=keyset)
    keys.change_passphrase(store, newer, MINT, "second")
    assert opened(store, "second").keyset.extra == {"agent_key": "ab"}
    keys.rotate(store, opened(store, "second"), MINT, {"": "third"})
    assert opened(store, "third").keyset.extra == {"agent_key": "ab"}


def test_a_slot_that_this_program_can_not_open_is_dropped_by_a_rotation(store: MemoryStore, created: keys.Created) -> None:
    store.put("keys/00000000000000ff", [b"{}\n"])
    assert "00000000000000ff" in keys.rotate(store, created.unlocked, MINT, {"": "x"}).dropped


def test_keys_of_an_older_generation_change_nothing(store: MemoryStore, created: keys.Created) -> None:
    old = created.unlocked
    keys.rotate(store, old, MINT, {"": "x"})
    before = store.snapshot()
    for change in (
        lambda: keys.add_passphrase(store, old, MINT, "y"),
        lambda: keys.add_recovery_key(store, old, MINT),
        lambda: keys.change_passphrase(store, old, MINT, "y"),
        lambda: keys.rotate(store, old, MINT, {"": "y"}),
    ):
        with pytest.raises(KeysChanged):
            change()
    assert store.snapshot() == before


def test_an_old_slot_that_was_put_back_is_told_and_not_preferred(store: MemoryStore, created: keys.Created) -> None:
    old = created.unlocked.slot
    assert old is not None
    keys.rotate(store, created.unlocked, MINT, {"": "first"})
    store.put(old.name, [old.encode()])
    unlocked = opened(store, "first")
    assert unlocked.keyset.current == 2
    assert unlocked.outdated == (old.slot,)
    keys.remove_slot(store, unlocked, old.slot)
    assert opened(store, "first").outdated == ()


def test_derived_keys_differ_by_secret_salt_and_purpose() -> None:
    # RFC 5869 has no vector with our info; this one was computed with HMAC by hand, see the formula there.
    extracted = hmac.new(b"salt", b"secret", hashlib.sha256).digest()
    expected = hmac.new(extracted, b"everywhen 1 pack\x01", hashlib.sha256).digest()
    assert keys.derive(b"secret", b"salt", "pack") == expected
    assert len({keys.derive(*a) for a in ((b"a", b"b", "c"), (b"x", b"b", "c"), (b"a", b"x", "c"), (b"a", b"b", "x"))}) == 4


def test_a_machine_without_the_memory_says_so(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    keys.create(store, MINT, passphrase="first")

    def exhausted(*_: object) -> bytes:
        raise HashingError("Memory allocation error")

    monkeypatch.setattr(keyslots, "hash_secret_raw", exhausted)
    with pytest.raises(RepositoryError, match=r"Nothing was touched\. Close other programs"):
        opened(store, "first")


def test_slots_read_as_they_were_written(store: MemoryStore, created: keys.Created) -> None:
    for slot in table(store).slots:
        assert KeySlot.decode(slot.slot, store.get(slot.name)) == slot
