# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `status` shows on terminals of several widths."""

from __future__ import annotations

import io

import pytest

from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.cli.output import Output
from everywhen.interfaces.cli.status import _show
from everywhen.repository.ledger import Vm
from everywhen.services.standing import State, VmStanding

NEED = "not captured: its capture on this host ended 1 h ago (the spool cannot be written); begin it again: everywhen protect"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("columns", "in_the_table"), [(80, False), (200, True)])
def test_what_is_needed_leaves_room_for_the_rest(columns: int, *, in_the_table: bool) -> None:
    vm = Vm("0" * 32, "web1", "web1", "", "", 0)
    needing = VmStanding(vm, None, None, None, None, 119, None, [], 0, None, protected=False, needs=[NEED])
    out = Terminal()
    environment = {"TERM": "xterm", "COLUMNS": str(columns), "NO_COLOR": "1", "TZ": "UTC"}
    _show(Context(Output(out, io.StringIO(), environment), environment), State(0, None, 0, [needing], [], [], []), "Title", [])
    lines = out.getvalue().splitlines()
    head = next(line.split() for line in lines if line.startswith("VM "))
    assert head[:10] == ["VM", "STATE", "NEWEST", "AGE", "OLDEST", "MOMENTS", "HELD", "DROPPED", "POLICY", "NEEDS"][: len(head)]
    assert ("NEEDS" in head) == in_the_table
    assert (f"NEEDS YOU  web1: {NEED}" in lines) != in_the_table
    assert any(NEED in line for line in lines)
