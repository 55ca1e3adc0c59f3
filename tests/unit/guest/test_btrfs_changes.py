# SPDX-License-Identifier: AGPL-3.0-or-later
"""Changes over the items of a tree, from any key on: as if the tree had them."""

from __future__ import annotations

from bisect import bisect_right
from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from everywhen.formats.filesystems.btrfs import Key
from everywhen.guest.btrfs_changes import Changes

NUMBERS = st.integers(0, 12)


@given(st.sets(NUMBERS), st.lists(st.tuples(NUMBERS, st.booleans())), NUMBERS)
def test_items_from_a_key_on_are_those_of_a_tree_with_the_changes(
    below: set[int], changes: list[tuple[int, bool]], first: int
) -> None:
    keys = {number: Key(1, 108, number) for number in range(13)}
    laid, items = Changes(), {keys[number]: b"below" for number in below}
    for number, is_there in changes:
        if is_there:
            laid.put(keys[number], b"above")
            items[keys[number]] = b"above"
        else:
            laid.remove(keys[number])
            items.pop(keys[number], None)
    tree = sorted(keys[number] for number in below)
    begin = max(0, bisect_right(tree, keys[first]) - 1)
    found = list(laid.over(((key, b"below") for key in tree[begin:]), keys[first]))
    expected = sorted(items)
    last = max(0, bisect_right(expected, keys[first]) - 1)
    assert [key for key, _data in found] == sorted({key for key, _data in found})
    assert dict(found) == {key: items[key] for key, _data in found}
    # Of what is before the key at least the last one that was changed; of what was not, another one was in the tree behind it.
    needed = [key for key in expected[last:] if key >= keys[first] or items[key] == b"above"]
    assert set(needed) <= set(chain(dict(found)))
