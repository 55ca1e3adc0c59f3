# SPDX-License-Identifier: AGPL-3.0-or-later
"""Links of a guest as they are shown in a folder of this machine: none leads out of the guest's own tree.

Who follows them here is this machine's kernel, which knows no root of the guest's: an absolute target would lead to this
machine's files, and so would one with more `..` than there are folders. A guest's kernel stays in its root
(path_resolution(7)). So a target that is shown is either as it is, or a way up to the folder that is the guest's root and down
from there. After its leading `..`, of which there are no more than folders above it, it has none: behind a name that is a link
itself, `..` would lead who knows where.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Resolved = Callable[[str], str | None]
"""A path of the guest's, from its root: the same without links on the way, or None where it leads to nothing."""


def inner_target(folder: Sequence[str], target: str, resolved: Resolved) -> str:
    """`target` of a link in `folder` (names from the guest's root) as it can be shown; the same where that does no harm."""
    parts = [part for part in target.split("/") if part not in ("", ".")]
    up = next((number for number, part in enumerate(parts) if part != ".."), len(parts))
    down = parts[up:]
    if ".." not in down:
        if not target.startswith("/") and up <= len(folder):
            return target
        return _way(folder, [] if target.startswith("/") else list(folder[: max(0, len(folder) - up)]), down)
    whole = parts if target.startswith("/") else [*folder, *parts]
    found = resolved("/" + "/".join(whole))
    return _way(folder, [], _plain(whole) if found is None else [part for part in found.split("/") if part])


def _way(folder: Sequence[str], begin: Sequence[str], down: Sequence[str]) -> str:
    """From a folder up to the root, and down from there."""
    return "/".join([*(".." for _ in folder), *begin, *down]) or "."


def _plain(parts: Sequence[str]) -> list[str]:
    """Without `..`, each taking away the name before it: of a path that leads nowhere it does not matter where."""
    found: list[str] = []
    for part in parts:
        if part != "..":
            found.append(part)
        elif found:
            found.pop()
    return found
