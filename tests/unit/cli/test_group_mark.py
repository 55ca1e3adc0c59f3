# SPDX-License-Identifier: AGPL-3.0-or-later
"""A mark of a group is of one instant: whose point shows another one has none of it."""

from __future__ import annotations

from everywhen.interfaces.cli.group_mark import told_apart


def test_a_point_of_another_instant_is_none() -> None:
    mine, other = {"point": "p-1", "time_ns": 5}, {"point": "p-2", "time_ns": 6}
    made, missed = told_apart({"web1": mine, "web2": other, "web3": "it is paused", "web4": {}}, 5)
    assert made == {"web1": mine}
    assert missed["web3"] == "it is paused"
    assert "of another instant" in missed["web2"]
    assert missed["web4"] == missed["web2"]
