# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a rude peer says: recorded messages with bytes changed, removed, repeated."""

from __future__ import annotations

from hypothesis import strategies as st

Mutation = tuple[int, str, int, bytes]
"""Which message, how, where in it, and with what."""


def mutations(count: int) -> st.SearchStrategy[list[Mutation]]:
    """Of so many messages."""
    one = st.tuples(
        st.integers(0, count - 1),
        st.sampled_from(["change", "remove", "repeat", "cut", "grow", "swap"]),
        st.integers(0, 100),
        st.binary(min_size=1, max_size=8),
    )
    return st.lists(one, min_size=1, max_size=4)


def mutated(messages: list[bytes], changes: list[Mutation]) -> list[bytes]:
    found = list(messages)
    for number, how, at, value in changes:
        if number >= len(found):
            continue
        one = found[number]
        at %= len(one) or 1
        if how == "change":
            found[number] = one[:at] + value + one[at + len(value) :]
        elif how == "remove":
            del found[number]
        elif how == "repeat":
            found.insert(number, one)
        elif how == "cut":
            found[number] = one[:at]
        elif how == "grow":
            found[number] = one + value
        else:
            found[number], found[-1] = found[-1], one
    return found
