# SPDX-License-Identifier: AGPL-3.0-or-later
"""Repairing what `verify` found: second copies written again, packs mended, lost chunks stored anew.

Nothing is claimed that was not checked: an object is copied only from a copy that was read and understood, a chunk only
when its content hashes to its name.

**Why gc cannot take what a repair stores.** A repair is a writer (docs/locking.md) that commits no point: W1 to W3, then
packs, then its session ends. What it stores are chunks that live points name already. Four things hold together:

1. A gc that condemns (G5) knows only packs of its listing (G2). A pack of ours that is in it was put after our session
   (W1); gc lists sessions after packs, so it saw our session, or it had ended: then (2).
2. Verify noted the damaged copies below `damage/` before the repair began. Whoever lists our packs reads `damage/`
   after it (`Repository.refresh`), so in its marking our copy is the only usable one of its name: it is live.
3. A chunk of which no copy at all was left has only ours. The chunks of a pack that was emptied have two copies until
   the pack is condemned; from then on marking prefers those outside condemned packs: ours.
4. A repair that was silent so long that gc fenced it loses nothing by that: what is live is decided by (2) and (3).

A killed repair leaves its session for gc to fence; what it stored by then is used by the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from everywhen.formats.ids import ChunkName, PackId, pack_of_object, random_word
from everywhen.formats.pack import KIND_META, Record
from everywhen.repository import damage
from everywhen.repository.chunk import Encoded
from everywhen.repository.condemned import Condemnation, publish
from everywhen.repository.gc.records import read_record
from everywhen.repository.ingest import ChunkSink
from everywhen.repository.repository import Repository
from everywhen.repository.similarity import page_fingerprints, sampled
from everywhen.repository.twins import TWINS
from everywhen.repository.verify import giving_up
from everywhen.repository.verify.affected import LossFinder, losses, lost_names
from everywhen.repository.verify.causes import Causes
from everywhen.repository.verify.check_minutes import forget_minutes
from everywhen.repository.verify.findings import Finding, Remedy
from everywhen.repository.verify.mending import mend_pack
from everywhen.repository.verify.repair_sources import Source
from everywhen.repository.verify.survey import Survey
from everywhen.repository.verify.verify import Judgement
from everywhen.repository.writer import write_point
from everywhen.storage.base import ObjectNotFound

Step = Callable[[str, int, int | None], None]


@dataclass(slots=True)
class Repaired:
    """What a repair did."""

    objects: int = 0
    """Written again, or put together from two copies."""
    chunks: dict[str, int] = field(default_factory=dict)
    """Stored anew, by the name of the source."""


def repair(
    repository: Repository, judgement: Judgement, sources: list[Source], step: Step, give_up: Collection[str] = ()
) -> Repaired:
    """Repair what can be repaired, remove the unreadable documents that `give_up` names; bring the findings up to date.

    Raises StorageError, LowOnSpace, Damaged, Busy."""
    repository.unlocked.superblock.require("write")
    done = Repaired()
    findings = judgement.verdict.findings
    for number, finding in enumerate(findings):
        step("objects", number, len(findings))
        if finding.remedy is Remedy.COPY and _copy(repository, finding):
            finding.repaired = f"written again from {finding.spare}"
            done.objects += 1
        elif finding.remedy is Remedy.DELETE:
            repository.documents.delete(finding.object)
            finding.repaired = "removed: it said nothing that is not known or found again by verify --read-data"
            done.objects += 1
        elif finding.remedy is Remedy.FORGET:
            gone = forget_minutes(repository, finding.object)
            finding.repaired = "removed: it was statistics only" if gone else "a capture has written it anew"
            done.objects += gone
    condemned = {name for name in give_up if giving_up.of_condemned(name)}
    done.objects += giving_up.give_up(repository, findings, condemned)
    hopeless = _mend(repository, judgement, done)
    with Survey(repository) as survey:
        survey.look()
        for pack, offset in judgement.bad:
            survey.index.exclude_copies(pack, [offset])
        if hopeless or _lost(judgement, survey):
            _store_anew(repository, judgement, survey, hopeless, sources, done, step)
        _update(repository, judgement, survey)
    done.objects += giving_up.give_up(repository, findings, set(give_up) - condemned)
    return done


def _copy(repository: Repository, finding: Finding) -> bool:
    """Write an object again from its other copy; not when that has gone meanwhile."""
    store = repository.store
    try:
        store.put(finding.object, [store.get(finding.spare)])
        if finding.object.startswith(TWINS):
            # A deletion takes the twin first: ours may have come between. What is being deleted must not come back.
            store.size(finding.spare)
    except ObjectNotFound:
        if finding.object.startswith(TWINS):
            store.delete(finding.object)
        return False
    return True


def _mend(repository: Repository, judgement: Judgement, done: Repaired) -> dict[PackId, list[Finding]]:
    """Mend packs; gives those whose index is lost, with their findings."""
    by_pack: dict[PackId, list[Finding]] = {}
    for finding in judgement.verdict.findings:
        pack = pack_of_object(finding.object.removeprefix(TWINS))
        if pack is not None and finding.stands:
            by_pack.setdefault(pack, []).append(finding)
    hopeless = {}
    for pack, found in by_pack.items():
        mended = mend_pack(repository, pack)
        if mended is None:
            hopeless[pack] = found
            continue
        for finding in found:
            if finding.offset not in mended.lost:
                finding.repaired = "put together again, byte for byte"
                done.objects += finding.offset is None
        _note_again(repository, judgement, pack, mended.lost)
    return hopeless


def _note_again(repository: Repository, judgement: Judgement, pack: PackId, lost: frozenset[int]) -> None:
    """Let `damage/` name only what is still lost of a mended pack."""
    before = {offset: why for (of, offset), why in judgement.bad.items() if of == pack}
    if before.keys() <= lost:
        return
    damage.forget(repository.documents, pack)
    still = {offset: why for offset, why in before.items() if offset in lost}
    if still:
        damage.record(repository.documents, damage.PackDamage(pack, still, repository.surroundings.clock()))
    for offset in before.keys() - lost:
        del judgement.bad[pack, offset]


def _store_anew(
    repository: Repository,
    judgement: Judgement,
    survey: Survey,
    hopeless: dict[PackId, list[Finding]],
    sources: list[Source],
    done: Repaired,
    step: Step,
) -> None:
    with write_point(repository, "repair", first_copy=False) as session:
        for pack, found in hopeless.items():
            step("packs without an index", 0, len(hopeless))
            count = _empty(repository, survey, pack, session.point)
            for finding in found:
                finding.repaired = f"{count} chunks were copied to a new pack; the next gc deletes this one"
        # Each round stores what can be had and looks again: below a node that came back there may be more that is lost.
        while wanted := _lost(judgement, survey):
            survey.look()
            before = sum(done.chunks.values())
            for source in sources:
                step(f"lost chunks from {source.name}", 0, len(wanted))
                _fetch(repository, session.point, source, wanted, done)
            if sum(done.chunks.values()) == before:
                break
            survey.look()
    repository.refresh()


def _empty(repository: Repository, survey: Survey, pack: PackId, session: str) -> int:
    """Copy the readable records of a pack without an index to new packs, and condemn it: nobody relies on it again."""
    index = survey.read_index(pack)
    twinned = survey.packs[pack].kind == KIND_META
    count = 0
    for deltas in (False, True):
        # Full copies are durable before any delta (rule 4.9.3).
        sink = ChunkSink(repository.writing(), session)
        try:
            for offset in () if index is None else index.offsets[(index.base_counts > 0) == deltas].tolist():
                record = read_record(repository, pack, offset)
                if isinstance(record, Record):
                    sink.put_copy(_as_stored(record), twinned=twinned, fingerprints=[])
                    count += 1
            sink.finish()
        finally:
            sink.close()
    word = "repair-" + random_word(repository.surroundings.randomness, 12)
    publish(repository.documents, Condemnation(word, frozenset({pack}), frozenset(), repository.surroundings.clock()))
    return count


def _as_stored(record: Record) -> Encoded:
    return Encoded(ChunkName(record.name), record.form, record.raw_length, record.bases, bytes(record.payload))


def _fetch(repository: Repository, session: str, source: Source, wanted: dict[bytes, bool], done: Repaired) -> None:
    """Store what the source has of the wanted chunks, and take it out of `wanted`."""
    codec = repository.codec
    sink = ChunkSink(repository.writing(), session)
    try:
        for name, content in source.find(dict(wanted)):
            if name not in wanted or codec.name(content) != name:
                continue
            is_node = wanted.pop(name)
            prints = [] if is_node else sampled(page_fingerprints([content])[0].tolist())
            sink.put_copy(codec.encode_full(ChunkName(name), content), twinned=is_node, fingerprints=prints)
            done.chunks[source.name] = done.chunks.get(source.name, 0) + 1
        sink.finish()
    finally:
        sink.close()


def _lost(judgement: Judgement, survey: Survey) -> dict[bytes, bool]:
    """Names of lost chunks, and whether each is a node."""
    finder = LossFinder(survey.fetcher.read, survey.decodable)
    return lost_names(judgement.live, finder)


def _update(repository: Repository, judgement: Judgement, survey: Survey) -> None:
    """What is still lost, by cause; what was lost and is not any more was repaired."""
    findings = judgement.verdict.findings
    finder = LossFinder(survey.fetcher.read, survey.decodable)
    causes = Causes(repository, survey, findings)
    still = losses(judgement.live, finder, causes.of)
    for number, finding in enumerate(findings):
        moments = [loss for loss in finding.losses if loss.kind == "moment"]
        before, finding.losses = finding.losses, moments + still.get(number, [])
        if finding.losses:
            finding.repaired = ""
        elif before and not finding.repaired:
            finding.repaired = "what it held is stored anew"
        elif finding.offset is not None and finding.spare and not finding.repaired:
            finding.repaired = "noted: nobody reads this copy again"
