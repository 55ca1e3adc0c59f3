# SPDX-License-Identifier: AGPL-3.0-or-later
"""Changes of keys cut after every storage operation, and overtaken by others between any two of them [I-9]."""

# ruff: noqa: S106  (passphrases of tests)

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import pytest

from everywhen.formats.keyslot import PASSPHRASE, RECOVERY, slot_name
from everywhen.repository.errors import NotARepository
from everywhen.repository.keys import keys, keyslots
from everywhen.repository.keys.keyerrors import (
    KeysChanged,
    LastSlot,
    NoKeySlot,
    RepositoryExists,
    WrongPassphrase,
)
from everywhen.storage.base import ObjectStore
from everywhen.storage.forwarding import ForwardingStore
from everywhen.storage.memory import MemoryStore
from everywhen.storage.recording import RecordingStore, replay

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


def table(store: ObjectStore) -> keyslots.SlotTable:
    return keys.list_slots(store, keys.read_superblock(store))


class Meddler(ForwardingStore):
    """Does something else right before the first change of an object whose name begins with `prefix`."""

    def __init__(self, inner: ObjectStore, prefix: str, deed: Callable[[], object], *, skip: int = 0) -> None:
        super().__init__(inner)
        self._prefix, self._deed, self._skip = prefix, deed, skip

    def _meddle(self, name: str) -> None:
        if name.startswith(self._prefix):
            self._skip -= 1
            if self._skip == -1:
                self._deed()

    def put(self, name: str, parts: Any, *, if_absent: bool = False) -> None:
        self._meddle(name)
        self.inner.put(name, parts, if_absent=if_absent)

    def delete(self, name: str) -> None:
        self._meddle(name)
        self.inner.delete(name)


# crashes

Operation = Callable[[ObjectStore, keys.Unlocked], list[str]]


def _add(store: ObjectStore, unlocked: keys.Unlocked) -> list[str]:
    keys.add_passphrase(store, unlocked, MINT, "second")
    return ["second"]


def _recovery(store: ObjectStore, unlocked: keys.Unlocked) -> list[str]:
    return [keys.add_recovery_key(store, unlocked, MINT)[1]]


def _change(store: ObjectStore, unlocked: keys.Unlocked) -> list[str]:
    keys.change_passphrase(store, unlocked, MINT, "second")
    return ["second"]


def _remove(store: ObjectStore, unlocked: keys.Unlocked) -> list[str]:
    assert unlocked.slot is not None
    keys.remove_slot(store, unlocked, unlocked.slot.slot, force=True)
    return []


def _rotate(store: ObjectStore, unlocked: keys.Unlocked) -> list[str]:
    return ["second", "third", keys.rotate(store, unlocked, MINT, {"a": "second", "b": "third"}).recovery_key]


def _rotate_same(store: ObjectStore, unlocked: keys.Unlocked) -> list[str]:
    return ["first", keys.rotate(store, unlocked, MINT, {"a": "first"}).recovery_key]


@pytest.mark.parametrize("operation", [_add, _recovery, _change, _remove, _rotate, _rotate_same])
def test_after_a_cut_anywhere_somebody_can_open_and_the_operation_can_be_repeated(
    store: MemoryStore, created: keys.Created, operation: Operation
) -> None:
    assert created.recovery_key is not None
    start = store.snapshot()
    recording = RecordingStore(store)
    secrets = ["first", created.recovery_key, *operation(recording, created.unlocked)]
    assert len(recording.changes) >= 2
    for cut in range(len(recording.changes) + 1):
        store.restore(start)
        replay(recording.changes[:cut], store)
        working = [secret for secret in secrets if opens(store, secret)]
        assert working, f"after {cut} changes"
        assert any(slot.generation == table(store).newest for slot in table(store).slots)
        for secret in working:
            keyset = opened(store, secret).keyset
            assert keyset.generations[1] == created.unlocked.keyset.generations[1]
        # No passphrase opens an older keyset than the one that it can open best, and a half rotation is told.
        best = max((opened(store, secret) for secret in working), key=lambda found: found.keyset.current)
        assert best.keyset.current == table(store).newest
        generations = {slot.generation for slot in table(store).slots}
        assert bool(best.outdated) == (len(generations) > 1)
        again = keys.rotate(store, best, MINT, {"": "after the crash"})
        assert opened(store, "after the crash").keyset == again.unlocked.keyset
        assert again.unlocked.keyset.generations.items() >= best.keyset.generations.items()
        assert opened(store, "after the crash").outdated == ()


@pytest.mark.parametrize("operation", [_change, _rotate, _rotate_same])
def test_the_only_slot_is_never_gone_before_its_successor_is_there(
    store: MemoryStore, created: keys.Created, operation: Operation
) -> None:
    for slot in table(store).slots:
        if slot.kind == RECOVERY:
            keys.remove_slot(store, created.unlocked, slot.slot, force=True)
    start = store.snapshot()
    recording = RecordingStore(store)
    operation(recording, created.unlocked)
    for cut in range(len(recording.changes) + 1):
        store.restore(start)
        replay(recording.changes[:cut], store)
        assert opens(store, "first") or opens(store, "second"), f"after {cut} changes"


def test_after_a_cut_anywhere_in_init_there_is_a_whole_repository_or_none(store: MemoryStore) -> None:
    recording = RecordingStore(store)
    created = keys.create(recording, MINT, passphrase="first")
    assert created.recovery_key is not None
    for cut in range(len(recording.changes) + 1):
        store.restore({})
        replay(recording.changes[:cut], store)
        try:
            keys.read_superblock(store)
        except NotARepository:
            keys.create(store, MINT, passphrase="again")
            assert opens(store, "again")
            assert not opens(store, "first")
        else:
            assert opens(store, "first")
            assert opens(store, created.recovery_key)


# races: another process acts between any two of our changes


def test_of_two_inits_one_wins_and_the_other_leaves_nothing(store: MemoryStore) -> None:
    meddled = Meddler(store, "everywhen", lambda: keys.create(store, MINT, passphrase="winner"))
    with pytest.raises(RepositoryExists):
        keys.create(meddled, MINT, passphrase="loser")
    assert opens(store, "winner")
    assert not opens(store, "loser")
    assert len(table(store).ids) == 2


def test_of_two_rotations_one_wins_and_the_other_says_so(store: MemoryStore, created: keys.Created) -> None:
    meddled = Meddler(store, "keys/", lambda: keys.rotate(store, created.unlocked, MINT, {"": "winner"}))
    with pytest.raises(KeysChanged, match="Nothing was changed"):
        keys.rotate(meddled, created.unlocked, MINT, {"": "loser"})
    assert opens(store, "winner")
    assert not opens(store, "loser")
    assert {slot.generation for slot in table(store).slots} == {2}


@pytest.mark.parametrize("skip", range(4))
@pytest.mark.parametrize("again", [False, True])
def test_of_two_changes_of_one_passphrase_one_wins_and_the_other_says_so(
    store: MemoryStore, created: keys.Created, skip: int, again: bool
) -> None:
    """`again`: the quick one changes it twice, so that what it claimed first is free again."""
    won: list[str] = []

    def change() -> None:
        try:
            keys.change_passphrase(store, created.unlocked, MINT, "quick")
        except KeysChanged:
            return
        won.append("quick")
        if again:
            keys.change_passphrase(store, opened(store, "quick"), MINT, "quicker")
            won[:] = ["quicker"]

    try:
        keys.change_passphrase(Meddler(store, "", change, skip=skip), created.unlocked, MINT, "slow")
    except KeysChanged:
        assert won
    else:
        won.append("slow")
    working = [secret for secret in ("first", "slow", "quick", "quicker") if opens(store, secret)]
    assert working == won


def test_a_change_that_was_interrupted_is_not_taken_for_done(store: MemoryStore, created: keys.Created) -> None:
    recording = RecordingStore(store)
    start = store.snapshot()
    made = keys.change_passphrase(recording, created.unlocked, MINT, "lost on the way")
    for cut in (1, 2, 3):
        store.restore(start)
        replay(recording.changes[:cut], store)
        with pytest.raises(KeysChanged, match=f"key remove {made.slot} and change again"):
            keys.change_passphrase(store, opened(store, "first"), MINT, "second")
        keys.remove_slot(store, opened(store, "first"), made.slot)
        keys.change_passphrase(store, opened(store, "first"), MINT, "second")
        assert [opens(store, secret) for secret in ("first", "lost on the way", "second")] == [False, False, True]


@pytest.mark.parametrize("skip", range(4))
def test_a_change_and_a_removal_at_once_leave_somebody_who_can_open(
    store: MemoryStore, created: keys.Created, skip: int
) -> None:
    for slot in table(store).slots:
        if slot.kind == RECOVERY:
            keys.remove_slot(store, created.unlocked, slot.slot, force=True)

    def remove() -> None:
        for slot in table(store).slots:
            assert created.unlocked.slot is not None
            if slot.slot != created.unlocked.slot.slot:
                keys.remove_slot(store, created.unlocked, slot.slot, force=True)

    keys.change_passphrase(Meddler(store, "", remove, skip=skip), created.unlocked, MINT, "second")
    assert table(store).slots


@pytest.mark.parametrize("skip", range(8))
def test_a_rotation_overtaken_by_a_later_one_never_undoes_it(store: MemoryStore, created: keys.Created, skip: int) -> None:
    late: list[keys.Rotated] = []

    def overtake() -> None:
        late.append(keys.rotate(store, opened(store, "slow"), MINT, {"": "late"}))

    meddled = Meddler(store, "twins/keys/", overtake, skip=skip)
    try:
        keys.rotate(meddled, created.unlocked, MINT, {"a": "slow", "b": "slower"})
    except KeysChanged:
        assert late
    if late:
        assert opened(store, "late").keyset == late[0].unlocked.keyset
        assert opens(store, late[0].recovery_key)
        assert {slot.generation for slot in table(store).slots} == {3}


@pytest.mark.parametrize("skip", range(12))
def test_a_planted_slot_that_claims_to_be_newer_locks_nobody_out(store: MemoryStore, created: keys.Created, skip: int) -> None:
    assert created.unlocked.slot is not None
    planted = dataclasses.replace(created.unlocked.slot, slot="f" * 16, generation=99)
    meddled = Meddler(store, "", lambda: store.put(planted.name, [planted.encode()]), skip=skip)
    try:
        keys.rotate(meddled, created.unlocked, MINT, {"": "first"})
    except KeysChanged:
        assert planted.name in store.snapshot()
    assert opens(store, "first")


@pytest.mark.parametrize("skip", range(4))
@pytest.mark.parametrize("operation", [_add, _recovery, _change])
def test_a_slot_made_during_a_rotation_opens_everything_or_is_refused(
    store: MemoryStore, created: keys.Created, operation: Operation, skip: int
) -> None:
    meddled = Meddler(store, "", lambda: keys.rotate(store, created.unlocked, MINT, {"": "rotated"}), skip=skip)
    try:
        secrets = operation(meddled, created.unlocked)
    except KeysChanged:
        secrets = []
    for secret in [*secrets, "rotated"]:
        if opens(store, secret):
            assert opened(store, secret).keyset.current == table(store).newest
    assert secrets or opens(store, "rotated")
    assert {slot.generation for slot in table(store).slots} in ({1}, {2})


@pytest.mark.parametrize("skip", range(8))
def test_a_rotation_leaves_no_slot_that_was_added_meanwhile(store: MemoryStore, created: keys.Created, skip: int) -> None:
    def add() -> None:
        try:
            keys.add_passphrase(store, created.unlocked, MINT, "meanwhile")
        except KeysChanged:
            return

    keys.rotate(Meddler(store, "keys/", add, skip=skip), created.unlocked, MINT, {"": "rotated"})
    assert {slot.generation for slot in table(store).slots} == {2}
    assert not opens(store, "meanwhile")


@pytest.mark.parametrize("prefix", ["keys/", "twins/keys/"])
def test_two_people_can_not_remove_the_last_two_slots(store: MemoryStore, created: keys.Created, prefix: str) -> None:
    assert created.recovery_key is not None
    by_kind = {slot.kind: slot.slot for slot in table(store).slots}
    other = by_kind[RECOVERY]
    meddled = Meddler(store, prefix, lambda: keys.remove_slot(store, created.unlocked, other, force=True))
    with pytest.raises(LastSlot, match="put back"):
        keys.remove_slot(meddled, created.unlocked, by_kind[PASSPHRASE], force=True)
    assert opens(store, "first")
    assert f"twins/{slot_name(by_kind[PASSPHRASE])}" in store.snapshot()
