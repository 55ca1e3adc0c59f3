# SPDX-License-Identifier: AGPL-3.0-or-later
"""The cut of a group at any time has the causes of all that it has (docs/decisions/0005-groups.md); the newest one is found."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from everywhen.capture.shared_clock import SharedClock, join
from everywhen.services.groups import common_instant
from tests.shared_clocks import forgotten

VMS, CLIENTS = 2, 2
START = 10**18

steps = st.lists(
    st.one_of(
        *[st.tuples(st.just("write"), st.integers(0, CLIENTS - 1), st.integers(0, VMS - 1))] * 3,
        st.tuples(st.just("passes"), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("set"), st.integers(-20, 20), st.just(0)),
        st.tuples(st.just("tell"), st.integers(0, CLIENTS - 1), st.integers(0, CLIENTS - 1)),
        st.tuples(st.just("restart"), st.integers(0, VMS - 1), st.just(0)),
        st.tuples(st.just("lose"), st.integers(0, CLIENTS - 1), st.integers(0, VMS - 1)),
    ),
    min_size=10,
    max_size=60,
)
"""`lose`: a write in a gap: nobody stamps it, and what follows it is caused by it all the same."""


@dataclass
class Write:
    """One of a VM. `stamp` None: in a gap, after all that the VM's sink had stamped."""

    vm: int
    stamp: int | None
    after: int
    causes: frozenset[int]


@dataclass
class Host:
    """Sinks on one host, and programs that write to its VMs one write after the other, and tell each other what they know."""

    folder: Path
    wall: int = START
    writes: list[Write] = field(default_factory=list)
    known: list[frozenset[int]] = field(default_factory=lambda: [frozenset()] * CLIENTS)
    newest: list[int] = field(default_factory=lambda: [0] * VMS)

    def __post_init__(self) -> None:
        self.clocks = [self.begun(vm) for vm in range(VMS)]

    def begun(self, vm: int) -> SharedClock:
        return SharedClock(join(self.folder, f"vm{vm}", START, os.urandom), f"vm{vm}")

    def take(self, what: str, one: int, other: int) -> None:
        match what:
            case "passes":
                self.wall += one
            case "set":
                self.wall += one
            case "write" | "lose":
                stamp = self.clocks[other].stamp(self.wall) if what == "write" else None
                self.newest[other] = stamp or self.newest[other]
                self.writes.append(Write(other, stamp, self.newest[other], self.known[one]))
                self.known[one] |= {len(self.writes) - 1}
            case "tell":
                self.known[other] |= self.known[one]
            case _:
                self.clocks[one] = self.begun(one)

    def cut(self, time: int) -> set[int]:
        return {number for number, write in enumerate(self.writes) if write.stamp is not None and write.stamp <= time}


@given(steps)
def test_a_cut_has_the_causes_of_what_it_has(taken: list[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder, forgotten(Path(folder)):
        host = Host(Path(folder))
        for step in taken:
            host.take(*step)
    stamps = sorted({write.stamp for write in host.writes if write.stamp is not None})
    for time in stamps:
        there = host.cut(time)
        for number in there:
            for cause in host.writes[number].causes:
                # A write in a gap is in no cut: but at this time, later than the gap's begin, its VM cannot be opened.
                write = host.writes[cause]
                assert cause in there or (write.stamp is None and time > write.after)
    for vm in range(VMS):
        own = [write.stamp for write in host.writes if write.vm == vm and write.stamp is not None]
        assert own == sorted(set(own)), "a cut is a beginning of each VM's sequence"


covers = st.lists(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6)).map(lambda one: range(one[0], one[0] + one[1] + 1)), min_size=1),
    min_size=1,
    max_size=4,
)


@given(covers, st.integers(0, 40))
def test_the_newest_common_instant_is_found(vms: list[list[range]], asked: int) -> None:
    known = [{at for one in vm for at in one} for vm in vms]
    common = {at for at in set.intersection(*known) if at <= asked}

    def stands(of: set[int], at_ns: int) -> int:
        before = [at for at in of if at <= at_ns]
        if not before:
            raise LookupError
        return max(before)

    try:
        found, held_back = common_instant({str(vm): partial(stands, of) for vm, of in enumerate(known)}, asked)
    except LookupError:
        assert not common
        return
    assert found == max(common)
    assert bool(held_back) == (found < asked)
