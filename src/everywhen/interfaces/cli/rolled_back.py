# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `points` and `timeline` say of a roll-back, each of which loads nothing of the other."""

from __future__ import annotations

from everywhen.formats.point import RolledBack
from everywhen.services.addresses import branch_name
from everywhen.services.times import rfc3339


def rolled_back_document(vm: str, back: RolledBack | None) -> dict[str, object] | None:
    """For programs; `branch` is the address of what was left."""
    if back is None:
        return None
    return {"point": back.point, "time": rfc3339(back.time_ns), "branch": branch_name(vm, back.branch)}
