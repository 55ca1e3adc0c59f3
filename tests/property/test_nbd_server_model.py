# SPDX-License-Identifier: AGPL-3.0-or-later
"""Requests of all kinds, many at a time over several connections, against what the disk must then hold."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from everywhen.nbd import protocol as p
from everywhen.nbd.connection import NbdConnection
from tests.long_forms import SOAK
from tests.memory_devices import BLOCK, MemoryDevice, MemoryExports, served

SLOT = 50_000
SLOTS = 24
SIZE = SLOT * SLOTS
CONNECTIONS = 3


class Step(NamedTuple):
    """One request: over which connection, in which slot, what, where in it, how long, and of which bytes."""

    connection: int
    slot: int
    kind: str
    begin: int
    length: int
    value: int


step = st.builds(
    Step,
    st.integers(0, CONNECTIONS - 1),
    st.integers(0, SLOTS - 1),
    st.sampled_from(["read", "write", "zero"]),
    st.integers(0, SLOT - 1),
    st.integers(1, SLOT),
    st.integers(0, 255),
)
rounds = st.lists(st.lists(step, min_size=1, max_size=40, unique_by=lambda one: one.slot), min_size=1, max_size=4)
"""In a round all are under way together; no two concern the same bytes, as their order would be nobody's to say."""


def played(connections: list[NbdConnection], steps: list[Step], model: bytearray) -> None:
    """Send all of it, and then look at the answers."""
    asked = []
    for one in steps:
        connection, offset = connections[one.connection], one.slot * SLOT + one.begin
        length = min(one.length, SLOT - one.begin)
        if one.kind == "read":
            asked.append((connection, connection.ask(offset, length), bytes(model[offset : offset + length])))
        elif one.kind == "write":
            data = bytes([one.value]) * length
            asked.append((connection, connection.send(offset, data), b""))
            model[offset : offset + length] = data
        else:
            asked.append((connection, connection.send_zeroes(offset, length), b""))
            model[offset : offset + length] = bytes(length)
    for connection, cookie, expected in reversed(asked):
        assert connection.answer(cookie).data == expected


def test_the_disk_holds_what_was_written(tmp_path: Path) -> None:
    device = MemoryDevice(bytes(SIZE))
    with served(MemoryExports({"disk": device}, frozenset({"disk"})), tmp_path) as running:
        connections = [running.connected("disk", p.ALLOCATION) for _ in range(CONNECTIONS)]

        @settings(max_examples=2000 if SOAK else 60)
        @given(rounds, st.booleans())
        def hold(all_steps: list[list[Step]], at_hand: bool) -> None:
            device.at_hand = at_hand
            device.content[:] = bytes(SIZE)
            model = bytearray(SIZE)
            for steps in all_steps:
                played(connections, steps, model)
            assert device.content == model
            offset = 0
            for length, flags in connections[0].extents(p.ALLOCATION, 0, SIZE):
                zero = not any(model[offset : offset + length])
                assert zero == (flags == p.STATE_HOLE | p.STATE_ZERO) or length % BLOCK == 0
                offset += length

        hold()
        for connection in connections:
            connection.close()
