# SPDX-License-Identifier: AGPL-3.0-or-later
"""Findings about packs as wholes: header, footer, index, twins, and parts that a scan could not read (rule 4.9.6)."""

from __future__ import annotations

from everywhen.formats.ids import PackId, pack_object
from everywhen.repository.repository import Repository
from everywhen.repository.twins import TWINS, twin_of
from everywhen.repository.verify.findings import Finding, Remedy, Verdict
from everywhen.repository.verify.survey import Flawed, Survey
from everywhen.storage.base import ObjectNotFound

_MISSING = "missing"


def pack_findings(survey: Survey, condemned: frozenset[PackId]) -> list[Finding]:
    """One finding for each damaged copy, and for each hole in a pack that had to be scanned."""
    found = []
    for pack, flaw in sorted(survey.flawed.items()):
        here = [_finding(survey, flaw, twin=twin) for twin in flaw.wrong]
        here += [Finding("I-3", pack_object(pack), why, offset) for offset, why in flaw.holes.items()]
        for finding in here:
            finding.known = pack in condemned
        found += here
    return found


def confirmed(repository: Repository, survey: Survey, verdict: Verdict) -> list[Finding]:
    """The findings without those of packs that gc deleted meanwhile, or that somebody was just writing."""
    kept = []
    for finding in verdict.findings:
        name = finding.object.removeprefix(TWINS)
        if name.startswith("packs/") and len(name) > len("packs/") and not finding.losses:
            pack = PackId(bytes.fromhex(name.rpartition("/")[2]))
            if finding.why == _MISSING and _is_there(repository, finding.object):
                continue
            if finding.why == _MISSING and _being_written(repository, survey, pack):
                verdict.notes.append(f"{finding.object} is not there yet: its writer is at work")
                continue
            if not _is_there(repository, name) and not _is_there(repository, twin_of(name)):
                continue
        kept.append(finding)
    return kept


def _finding(survey: Survey, flaw: Flawed, *, twin: bool) -> Finding:
    name = pack_object(flaw.pack)
    ours, other = (twin_of(name), name) if twin else (name, twin_of(name))
    has_other = survey.packs[flaw.pack].sizes[not twin] is not None
    spare = other if has_other and not flaw.wrong.get(not twin) else ""
    remedy = Remedy.EMPTY if flaw.scanned or not survey.packs[flaw.pack].rows else Remedy.MEND
    return Finding("I-3", ours, flaw.wrong[twin], spare=spare, remedy=remedy)


def _being_written(repository: Repository, survey: Survey, pack: PackId) -> bool:
    seen = survey.packs.get(pack)
    session = f"sessions/{seen.session}" if seen and seen.session else ""
    return any(_is_there(repository, name) for name in (session, "lock/gc") if name)


def _is_there(repository: Repository, name: str) -> bool:
    try:
        repository.store.size(name)
    except ObjectNotFound:
        return False
    return True
