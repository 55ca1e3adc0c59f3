# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `everywhen rollback` says before, while and after it does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from everywhen.formats.point import RecoveryPoint
from everywhen.interfaces.cli.context import Context
from everywhen.services.addresses import branch_name
from everywhen.services.ages import SECOND, span
from everywhen.services.rollback.planning import Plan
from everywhen.services.rollback.record import Step
from everywhen.services.rollback.rollback import Report, Rollback
from everywhen.services.sizes import size
from everywhen.services.times import local_time, rfc3339

_WORDS = {
    Step.PRESENT: "what it holds now is kept",
    Step.WRITTEN: "its disks are written",
    Step.STARTED: "done",
}
_RATE = 100_000_000
"""Bytes a second, for a first idea of how long it takes: a hard disk's, in order."""


class Telling:
    """Is `services.rollback.rollback.Told`."""

    def __init__(self, context: Context, stack: ExitStack) -> None:
        """Progress is shown until the next work begins, or `stack` ends."""
        self._context = context
        self._shown = stack.enter_context(ExitStack())

    def reached(self, vm: str, step: Step) -> None:
        self._shown.close()
        if step in _WORDS:
            self._context.output.note(f"{vm}: {_WORDS[step]}")

    def working(self, vm: str, step: Step) -> Report:
        what = "read" if step is Step.PRESENT else "write"
        self._shown.close()
        job = self._shown.enter_context(self._context.progress(f"{what} {vm}"))
        return lambda done, total: job.report(done, total)


def tell_plans(context: Context, plans: Sequence[Plan], apart: Mapping[str, tuple[str, int]]) -> None:
    """What is going to happen."""
    for plan in plans:
        vm, record = plan.asked.vm.name, plan.record
        to = local_time(record.goal.time_ns, context.zone)
        disks = ", ".join(record.disks)
        runs = f"{vm} is running. It will be stopped, and started again. " if record.ran else f"{vm} is off, and stays off. "
        written = sum(plan.differs.values())
        seconds = span(max(1, round(written / _RATE)) * SECOND)
        context.output.line(f"{runs}{disks} {'are' if len(record.disks) > 1 else 'is'} set back to {to}.")
        amount = f"{size(written)} of {size(sum(plan.sizes.values()))} are written, as far as is known now"
        context.output.line(f"  {amount}; about {seconds} at {size(_RATE)} a second.")
        context.output.line(
            f"  {span(plan.leaves_ns)} of changes leave the machine and stay here as branch {branch_name(vm, record.branch)}."
        )
        if record.others:
            context.output.warn(f"{vm}: {', '.join(record.others)} stay as they are, and are of another time then")
        if vm in apart:
            group, ahead = apart[vm]
            context.output.warn(
                f"{vm} belongs to group {group}, of which others are not rolled back: they will be {span(abs(ahead))} "
                f"{'ahead' if ahead >= 0 else 'behind'}. All of it: everywhen rollback group:{group}@WHEN"
            )


def plan_document(plan: Plan, apart: Mapping[str, tuple[str, int]]) -> dict[str, object]:
    """For programs."""
    record = plan.record
    vm = plan.asked.vm.name
    return {
        "to": rfc3339(record.goal.time_ns),
        "point": record.goal.point,
        "runs": record.ran,
        "branch": branch_name(vm, record.branch),
        "leaves_seconds": round(plan.leaves_ns / SECOND, 3),
        "disks": {
            name: {"path": disk.path, "size": plan.sizes[name], "bytes_to_write": plan.differs.get(name)}
            for name, disk in record.disks.items()
        },
        "others": list(record.others),
        "group_apart_seconds": round(apart[vm][1] / SECOND, 3) if vm in apart else None,
    }


def tell_done(context: Context, rollbacks: Sequence[Rollback], points: Mapping[str, RecoveryPoint | None]) -> None:
    """What came of it."""
    document = {}
    for one in rollbacks:
        vm, record, point = one.vm.name, one.record, points[one.vm.name]
        branch = branch_name(vm, record.branch)
        document[vm] = {
            "to": rfc3339(record.goal.time_ns),
            "point": point.point if point else None,
            "present": record.present,
            "branch": branch if point else None,
            "bytes_written": one.written,
            "undone": record.undo,
            "started": record.ran,
            "said": one.said,
        }
        if point is None:
            context.output.line(f"{vm}: the rollback was broken off; its disks are what they were before.")
            continue
        when = local_time(record.goal.time_ns, context.zone)
        ran = "; it was started again" if record.ran else ""
        context.output.line(f"{vm}: as it was at {when}, recovery point {point.point}; {size(one.written)} written{ran}.")
        if one.said:
            context.output.line(f"  {one.said[0].upper()}{one.said[1:]}.")
        context.output.line(f"  What was left:  {branch}   (everywhen ls {branch}@WHEN:/, everywhen cp {branch}@WHEN:/PATH .)")
        context.output.line(f"  Forward again:  everywhen rollback {branch}")
    context.output.document({"vms": document})
