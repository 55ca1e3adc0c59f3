# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which disks of a VM a capture takes: all, or those that its user named; by the same judgement as `everywhen doctor`.

Nothing is claimed that was not captured (I-5): a disk that cannot be captured is refused, and with it the VM, unless others are
named. Whatever else the guest writes to and no point has is `left_out`, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path

from everywhen.capture.nodes import DiskNode, NoDisks
from everywhen.capture.survey import DiskSeen, Survey
from everywhen.services.diagnosis import DiskJudged, Verdict, judge, judge_hypervisor
from everywhen.services.naming import is_name

NOT_NAMED = "not among the disks that were named"
NOT_THERE = "it is not attached now"


class CannotCapture(Exception):
    """A VM, or a disk of it, that cannot be captured: which, why, what to `do`; `busy`: while somebody else is at it."""

    def __init__(self, why: str, *do: str, busy: bool = False) -> None:
        super().__init__(why)
        self.do = [line for line in do if line]
        self.busy = busy


@dataclass(frozen=True, slots=True)
class Choice:
    """The disks to be captured, by our names, as the hypervisor has them; and why what else is there is not."""

    disks: dict[str, DiskNode]
    left_out: dict[str, str]

    def changed(self, now: list[DiskNode], *, named: bool) -> bool:
        """Whether the VM's disks are others `now`; where some were `named`, the rest may come and go."""
        nodes = list(self.disks.values())
        devices = {node.device for node in nodes}
        return (now if not named else [node for node in now if node.device in devices]) != nodes


def choose(found: Survey, named: Mapping[str, str], known: Container[str], state: Path) -> Choice:
    """`named`: the user's disks, with a node's name where one was given, else ''; none: all. `known`: disks of the VM's newest
    point, which may be absent now, though named; `state`: this host's state folder. Raises CannotCapture, NoDisks."""
    for check in judge_hypervisor(found):
        if check.verdict is Verdict.NO:
            raise CannotCapture(check.words, check.do)
    by_name = dict(zip(disk_names([seen.disk for seen in found.disks]), found.disks, strict=True))
    judged = {one.device: one for one in judge(found, state)}
    left_out = {one.device: one.reasons[0].why for one in judged.values() if one.is_written and one.reasons}
    if named:
        chosen = {name: _find(name, node, by_name, known) for name, node in named.items()}
        left_out |= {name: NOT_THERE for name, seen in chosen.items() if seen is None}
        taken = {name: seen.disk for name, seen in chosen.items() if seen is not None}
        left_out |= {name: NOT_NAMED for name, seen in by_name.items() if seen.disk not in taken.values()}
        suspects = [judged[disk.device] for disk in taken.values()]
    else:
        taken = {name: seen.disk for name, seen in by_name.items()}
        suspects = list(judged.values())
    refused = [one for one in suspects if one.verdict is Verdict.NO]
    if refused:
        raise _refusal(refused, [name for name, disk in taken.items() if judged[disk.device] not in refused])
    if not taken:
        raise NoDisks("there is no disk that can be written to" if not named else "none of the named disks is there")
    devices = {disk.device for disk in taken.values()}
    return Choice(taken, {name: why for name, why in left_out.items() if name not in devices})


def disk_names(nodes: list[DiskNode]) -> list[str]:
    """Names of ours for the disks, after the hypervisor's devices: they must not change when a disk is added or removed."""
    names = [re.sub(r"[^a-z0-9._-]+", "-", node.device.lower()).strip("-.") for node in nodes]
    return [name if is_name(name) and names.count(name) == 1 else f"disk{number}" for number, name in enumerate(names)]


def _find(name: str, node: str, there: Mapping[str, DiskSeen], known: Container[str]) -> DiskSeen | None:
    """The disk that is meant; None for one that was there before. Raises CannotCapture."""
    if not node:
        found = [seen for called, seen in there.items() if name in (called, seen.disk.device)]
    else:
        exact = [seen for seen in there.values() if seen.disk.node == node]
        found = exact or [seen for seen in there.values() if node in seen.nodes]  # below a snapshot that was made since
    if len(found) > 1:
        raise CannotCapture(f"{len(found)} disks stand on the node {node}", "Name a node that only one of them has.")
    if not found and name not in known:
        disks = ", ".join(f"{called} (node {seen.disk.node})" for called, seen in there.items()) or "none"
        what = f"no disk stands on a node {node}" if node else f"it has no disk {name}"
        raise CannotCapture(what, f"Disks that can be written to: {disks}.", "One by its node: --disk NAME=NODE")
    return found[0] if found else None


def _refusal(refused: list[DiskJudged], others: list[str]) -> CannotCapture:
    first = refused[0]
    reason = next(reason for reason in first.reasons if reason.verdict is Verdict.NO)
    more = f" ({len(refused) - 1} more cannot: everywhen doctor)" if len(refused) > 1 else ""
    ways = [reason.do] if reason.do else []
    if others:
        ways.append(f"Or protect only what can be: {' '.join(f'--disk {name}' for name in others)}")
    return CannotCapture(f"{first.device}: {reason.why}{more}", *ways, busy=reason.busy)


def refuse_pushed(devices: list[str]) -> CannotCapture:
    """That disks which nobody can read are not captured point by point: all of them would be sent for each."""
    why = "an iothread serves it, and it is no raw image or device of this host: all of it would be sent for every point"
    more = f" (so it is with {', '.join(devices[1:])})" if devices[1:] else ""
    return CannotCapture(
        f"{devices[0]}: {why}{more}",
        "Capture every write of it: without --interval.",
        "Or run it without an iothread, or from a raw image.",
    )
