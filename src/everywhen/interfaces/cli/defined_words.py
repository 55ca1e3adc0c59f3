# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `restore --define` says: what will be made, how it was looked at, what was made; for people and for programs."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from everywhen.interfaces.cli.context import Context
from everywhen.services.failures import Exit
from everywhen.services.opening import OpenedMoment
from everywhen.services.restore import RestoredDisk
from everywhen.services.returning.definition import Genid
from everywhen.services.returning.device_xml import Connected, Unconnected
from everywhen.services.returning.planning import Plan, Returning
from everywhen.services.returning.wishes import As, Check, State
from everywhen.services.sizes import size
from everywhen.services.times import rfc3339

_SIGNS = {State.passed: "✓", State.warned: "▲", State.failed: "✗"}
_PLAIN = {State.passed: "ok:", State.warned: "note:", State.failed: "NO:"}
_GENID = {
    Genid.changed: "new VM-Generation-ID",
    Genid.added: "a VM-Generation-ID, which it did not have: it looks like Windows",
    Genid.none: "no VM-Generation-ID: its definition has none, and it does not look like Windows",
}
_SAME_INSIDE = "the same inside the guest: host name, IP addresses, SSH keys, certificates, a Windows' SID"


@dataclass(frozen=True, slots=True)
class Seen:
    """How a guest was seen to be up, '' when it was not; seconds from the command until then; whether the domain runs."""

    sign: str
    after_s: float
    runs: bool


@dataclass(slots=True)
class Answer:
    """All that is said."""

    uri: str
    returning: Returning
    opened: OpenedMoment
    kind: As
    plan: Plan
    checks: Sequence[Check]
    written: list[RestoredDisk] | None = None
    """None with --dry-run."""
    seen: Seen | None = None
    seconds: float = 0.0

    @property
    def exit(self) -> Exit:
        """Less than was asked for where it was started, and not seen to be up."""
        return Exit.LESS_THAN_ASKED if self.seen is not None and not self.seen.sign else Exit.DONE

    def document(self) -> dict[str, object]:
        """For programs."""
        plan, written = self.plan, {disk.disk: disk for disk in self.written or []}
        return {
            "point": self.opened.point.point,
            "vm": self.returning.vm,
            "time": rfc3339(self.opened.found.moment.time_ns),
            "writes_after_point": self.opened.found.writes_after,
            "uri": self.uri,
            "as": self.kind.value,
            "name": plan.name,
            "uuid": str(plan.made.uuid),
            "disks": {
                place.disk.name: {
                    "path": place.path,
                    "format": place.format,
                    "pool": place.pool or None,
                    "size": place.disk.size,
                    "bytes_written": written[place.disk.name].bytes_written if place.disk.name in written else 0,
                }
                for place in plan.places
            },
            "files": [state.path for state in plan.states],
            "genid": plan.made.genid.value,
            "network": _network(plan),
            "checks": [{"what": check.what, "state": check.state.value} for check in self.checks],
            "remarks": list(plan.remarks),
            "started": self.seen is not None and self.seen.runs,
            "seen_by": self.seen.sign or None if self.seen is not None else None,
            "seconds_up": round(self.seen.after_s, 3) if self.seen is not None and self.seen.sign else None,
            "seconds": round(self.seconds, 3),
            "dry_run": self.written is None,
        }


def tell_plan(context: Context, answer: Answer) -> None:
    """What will be made, before anything is."""
    plan, say = answer.plan, context.output.line
    disks = answer.returning.disks
    to_write = sum(place.disk.used for place in plan.places if not place.there)
    whole = f"{len(disks)} disk{'s' if len(disks) != 1 else ''}, {size(sum(disk.size for disk in disks))}"
    say(f"From      {answer.opened.found.words(answer.returning.vm, context.zone)}")
    say(f"          {whole} ({size(to_write)} to write)")
    say(f'To        "{plan.name}" on {socket.gethostname()} ({answer.uri})')
    for place in plan.places:
        how = "a block device" if place.is_device else place.format
        where = f', pool "{place.pool}"' if place.pool else ""
        say(f"          {place.disk.name}: {place.path} ({how}{where}{', as it is there' if place.there else ''})")
    for state in plan.states:
        say(f"          {state.path}")
    for number, words in enumerate(_identity(answer)):
        say(f"{'          ' if number else 'Identity  '}{words}")
    signs = _SIGNS if context.output.can_draw("".join(_SIGNS.values())) else _PLAIN
    found = [f"{signs[check.state]} {check.what}" for check in answer.checks]
    for number, words in enumerate(found):
        say(f"{'          ' if number else 'Check     '}{words}")
    for remark in plan.remarks:
        context.output.warn(f"{plan.name} {remark}" if not remark.startswith("it") else remark)


def _identity(answer: Answer) -> list[str]:
    made = answer.plan.made
    new = answer.kind is As.new
    who = f"new UUID {made.uuid}, new MAC addresses" if new else f"UUID {made.uuid} and MAC addresses as they were"
    words = [f"{who}; {_GENID[made.genid]}", f"network: {_network(answer.plan)}"]
    return [*words, _SAME_INSIDE] if new else words


def _network(plan: Plan) -> str:
    if not plan.made.cards:
        return "no cards"
    if isinstance(plan.network, Unconnected):
        return "not connected (--network NAME to connect)"
    return plan.network.name if isinstance(plan.network, Connected) else "as before"


def tell_defined(context: Context, answer: Answer) -> None:
    """What was made."""
    say, plan = context.output.line, answer.plan
    if answer.written is None:
        say("Nothing was done (--dry-run).")
        return
    total = sum(disk.bytes_written for disk in answer.written)
    say(f'The domain "{plan.name}" is defined; {size(total)} written.')
    if answer.seen is None:
        say(f"  start it:             virsh start {plan.name}")
    elif answer.seen.sign:
        say(f"guest up {answer.seen.after_s:.1f} s after the command ({answer.seen.sign})")
    elif answer.seen.runs:
        context.output.warn("it runs, but neither a login prompt was seen nor an answer of a guest agent")
    else:
        context.output.warn("it was started, and has ended by itself")
    if answer.kind is not As.new:
        say(f"  also with its host:   virsh autostart {plan.name}   (no definition says whether it was so)")
        domain = "" if plan.name == answer.returning.vm else f" --domain {plan.name}"
        say(f"  follow it again:      everywhen protect {answer.returning.vm} --libvirt {answer.uri}{domain}")
    say(f"{answer.seconds:.1f} s")
