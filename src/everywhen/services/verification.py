# SPDX-License-Identifier: AGPL-3.0-or-later
"""Verifying and repairing, as people see it: VMs by name, moments by time, sources as they are named on a command line."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import tzinfo

from everywhen.repository.repository import Repository
from everywhen.repository.verify.findings import Finding, Loss, Remedy, Verdict
from everywhen.repository.verify.giving_up import meaning
from everywhen.repository.verify.repair import Repaired, repair
from everywhen.repository.verify.repair_sources import RepositorySource, Source
from everywhen.repository.verify.verify import Watching, judging
from everywhen.services.failures import WrongUsage
from everywhen.services.times import local_time, rfc3339

_SHOWN = 20
"""Findings, or losses of one finding, that are printed; all of them are in the JSON document."""

_IMAGE = re.compile(r"([^/=]+)/([^/=]+)=(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ImageArgument:
    """`VM/DISK=IMAGE`: a disk that still has what is lost."""

    vm: str
    disk: str
    path: str


@dataclass(frozen=True, slots=True)
class Verified:
    """The verdict, after the repair if one was asked for."""

    verdict: Verdict
    repaired: Repaired | None
    seconds: float


OpenSources = Callable[[], AbstractContextManager[list[Source]]]


def verify_repository(
    repository: Repository, watching: Watching, *, read_data: bool, sources: OpenSources | None, give_up: Collection[str] = ()
) -> Verified:
    """Judge the repository; with `sources` (which may give none) repair it, and remove the documents that `give_up` names.

    Raises WrongUsage where one of these can be read, and the errors of the layers below.
    """
    began = repository.surroundings.clock()
    repaired = None
    with judging(repository, watching, read_data=read_data) as judgement:
        _demand_lost(judgement.verdict, give_up)
        if sources is not None and judgement.verdict.damaged:
            with sources() as opened:
                repaired = repair(repository, judgement, opened, watching.step, give_up)
    return Verified(judgement.verdict, repaired, (repository.surroundings.clock() - began) / 1e9)


def _demand_lost(verdict: Verdict, give_up: Collection[str]) -> None:
    lost = {finding.object for finding in verdict.findings if finding.remedy is Remedy.GIVE_UP}
    for name in give_up:
        if name not in lost:
            raise WrongUsage(
                f"{name} is no document that is unreadable in both of its copies.",
                on=name,
                safe="Nothing was changed.",
                do=["everywhen verify (names those that are)"],
            )


def parse_source(text: str) -> ImageArgument | str:
    """`VM/DISK=IMAGE`, or else the path or URL of a repository. Raises WrongUsage."""
    match = _IMAGE.fullmatch(text)
    if match:
        return ImageArgument(*match.groups())
    if not text:
        raise WrongUsage("--repair-from needs a repository, or VM/DISK=IMAGE.")
    return text


def family_source(name: str, ours: Repository, theirs: Repository) -> RepositorySource:
    """Another repository as a source. Raises WrongUsage when it names chunks by another key."""
    if theirs.unlocked.keyset.naming_key != ours.unlocked.keyset.naming_key:
        raise WrongUsage(
            f"{name} is no copy or replica of {ours.store.url}: it names the same content differently, so nothing can be "
            "found in it. Nothing was changed.",
            on=name,
        )
    theirs.refresh()
    return RepositorySource(name, theirs.fetcher)


def document(verified: Verified, *, read_data: bool) -> dict[str, object]:
    """What `verify --json` prints.

    `damaged` (bool: exit code 3), `read_data`, `points`, `packs`, `chunks` (copies; read and hashed with `read_data`),
    `bytes_read`, `seconds`, `leased`, `noted`, `notes` (sentences) and `findings`, a list of:
    `invariant`, `object`, `offset` (null: all of it), `why`, `chunks` (how many are known by name), `good_copy` (or null),
    `known` (noted earlier, replaced since), `stands` (not repaired, and not merely known), `repaired` (how, or null) and
    `losses`, a list of: `vm` (null: not known), `kind` (`disk`, `file`, `moment`, or `journal`: moments between points),
    `name`, `ranges` ([first byte, byte after the last] pairs), `points` (ids), `first`, `last` (times; null when not known).
    `repaired`: null, or `objects` and `chunks` (stored anew, by source).
    """
    verdict, repaired = verified.verdict, verified.repaired
    return {
        "damaged": verdict.damaged,
        "read_data": read_data,
        "points": verdict.points,
        "packs": verdict.packs,
        "chunks": verdict.chunks,
        "bytes_read": verdict.bytes_read,
        "seconds": round(verified.seconds, 3),
        "leased": verdict.leased,
        "noted": verdict.noted,
        "notes": verdict.notes,
        "findings": [_finding_document(verdict, finding) for finding in verdict.findings],
        "repaired": repaired and {"objects": repaired.objects, "chunks": repaired.chunks},
    }


def lines(verdict: Verdict, zone: tzinfo) -> list[str]:
    """The findings for people, the gravest first; none when there are none."""
    ordered = sorted(verdict.findings, key=lambda finding: (not finding.losses, not finding.stands))
    text: list[str] = []
    for finding in ordered[:_SHOWN]:
        text += _finding_lines(verdict, finding, zone)
    if len(ordered) > _SHOWN:
        text.append(f"and {len(ordered) - _SHOWN} more: --json lists them all")
    losses = [loss for finding in verdict.findings for loss in finding.losses]
    if losses:
        touched = sorted({_what(verdict, loss) for loss in losses})
        text.append(f"Not affected: everything else of {', '.join(touched)}, and all other disks and VMs.")
    elif not any(finding.remedy is Remedy.GIVE_UP for finding in verdict.findings) and verdict.findings:
        text.append("No moment loses anything by this.")
    return text


def _finding_lines(verdict: Verdict, finding: Finding, zone: tzinfo) -> list[str]:
    state = "DAMAGED" if finding.stands else "repaired" if finding.repaired else "known"
    what = f"1 chunk in {finding.object} at byte {finding.offset:,}" if finding.offset is not None else finding.object
    text = [f"{state}  {what}: {finding.why}"]
    for loss in finding.losses[:_SHOWN]:
        text += [f"  {line}" for line in _loss_lines(verdict, loss, zone)]
    if len(finding.losses) > _SHOWN:
        text.append(f"  and {len(finding.losses) - _SHOWN} more: --json lists them all")
    if finding.repaired:
        text.append(f"  {finding.repaired}")
    elif finding.remedy is Remedy.GIVE_UP:
        text.append(f"  everywhen verify --repair --give-up {finding.object}    ({meaning(finding.object)})")
    if finding.repaired or finding.losses:
        return text
    if finding.spare:
        text.append(f"  nothing is lost: there is a good copy, {finding.spare}")
    elif finding.known:
        text.append("  nothing is lost: nobody relies on it, the next gc deletes it")
    elif finding.offset is not None:
        text.append("  nothing is lost: no moment needs it")
    return text


def _loss_lines(verdict: Verdict, loss: Loss, zone: tzinfo) -> list[str]:
    if loss.kind == "moment":
        return [f"{_what(verdict, loss)}: the moment {loss.points[0][0]} as a whole"]
    if loss.kind == "journal":
        point, time_ns = loss.points[0]
        return [f"{_what(verdict, loss)}: moments after {point} ({local_time(time_ns, zone)}), up to the next point"]
    first, last = loss.points[0][1], loss.points[-1][1]
    count = len(loss.points)
    when = f"in 1 moment, {local_time(first, zone)}"
    if count > 1:
        when = f"in {count} moments, {local_time(first, zone)} … {local_time(last, zone)}"
    shown = [f"{_what(verdict, loss)}  bytes {start:,} - {end - 1:,}   {when}" for start, end in loss.ranges[:_SHOWN]]
    if len(loss.ranges) > _SHOWN:
        shown.append(f"{_what(verdict, loss)}  and {len(loss.ranges) - _SHOWN} more ranges")
    return shown


def _what(verdict: Verdict, loss: Loss) -> str:
    vm = verdict.vms.get(loss.vm)
    name = vm.name if vm else loss.vm or "a VM that is not known any more"
    return f"{name}/{loss.name}" if loss.name else name


def _finding_document(verdict: Verdict, finding: Finding) -> dict[str, object]:
    return {
        "invariant": finding.invariant,
        "object": finding.object,
        "offset": finding.offset,
        "why": finding.why,
        "chunks": len(finding.chunks),
        "good_copy": finding.spare or None,
        "known": finding.known,
        "stands": finding.stands,
        "repaired": finding.repaired or None,
        "losses": [_loss_document(verdict, loss) for loss in finding.losses],
    }


def _loss_document(verdict: Verdict, loss: Loss) -> dict[str, object]:
    vm = verdict.vms.get(loss.vm)
    times = [time for _, time in loss.points if time]
    return {
        "vm": vm.name if vm else loss.vm or None,
        "kind": loss.kind,
        "name": loss.name,
        "ranges": [list(part) for part in loss.ranges],
        "points": [point for point, _ in loss.points],
        "first": rfc3339(times[0]) if times else None,
        "last": rfc3339(times[-1]) if times else None,
    }
