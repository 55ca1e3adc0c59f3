# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a store really does, tried at `init` [design 4.9.1]: some services ignore the condition of a conditional put."""

from __future__ import annotations

from everywhen.storage.base import AlreadyExists, ObjectStore, Traits, check_name


def probe_traits(store: ObjectStore, random_name: str) -> Traits:
    """The store's traits as observed; what it denies itself stays denied.

    Puts, lists and deletes the object `random_name`, which nobody else may use, nor anything else in its folder.
    One trial proves that a promise is broken, not that it is always kept. Raises StorageError when the store cannot
    be used at all.
    """
    folder, _, _ = check_name(random_name).rpartition("/")
    prefix = folder + "/" if folder else ""
    first, second = b"first writer", b"second writer"
    consistent = True
    store.put(random_name, [first], if_absent=True)
    try:
        consistent &= random_name in {found.name for found in store.list(prefix)}
        try:
            store.put(random_name, [second], if_absent=True)
            exclusive = False
        except AlreadyExists:
            exclusive = store.get(random_name) == first
    finally:
        store.delete(random_name)
    consistent &= random_name not in {found.name for found in store.list(prefix)}
    promised = store.traits
    return Traits(
        put_if_absent=exclusive and promised.put_if_absent,
        consistent_list=consistent and promised.consistent_list,
        remote=promised.remote,
    )
