# SPDX-License-Identifier: AGPL-3.0-or-later
"""Judging a repository: what is damaged, and which moments lose what by it (design 4.9.6, invariants of section 5).

Verify judges what was there when it began, beside running backups and gc (docs/locking.md):

- points are listed first and then leased, packs afterwards: the packs of a listed point were durable before it was;
- packs that gc deletes meanwhile had their live chunks copied before; so before anything is called lost, packs are
  listed once more, and points that are gone by then are left out;
- two copies of an object that differ may be one being written: they are looked at again at the end, and the missing twin
  of a pack is no finding while its writer's session, or a gc, is there.

Chunks found damaged are noted below `damage/`: lookups pass them over, and the next backup of the same content stores
them again. A record that is whole in the pack's other copy is not noted, only reported: a reader takes it from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from everywhen.formats.errors import FormatError
from everywhen.formats.fields import mapping
from everywhen.formats.ids import PackId, pack_object, random_word
from everywhen.formats.pack import Record
from everywhen.formats.point import RecoveryPoint
from everywhen.repository import damage
from everywhen.repository.condemned import Condemnation, read_condemned
from everywhen.repository.errors import Damaged
from everywhen.repository.gc.live import mark_live
from everywhen.repository.gc.marking import Marker
from everywhen.repository.gc.records import read_record
from everywhen.repository.repository import Repository
from everywhen.repository.twins import twin_of
from everywhen.repository.verify import check_journals, check_minutes, check_objects, check_points
from everywhen.repository.verify.affected import LossFinder, losses, lost_names
from everywhen.repository.verify.causes import Causes, unreadable_copies
from everywhen.repository.verify.check_content import read_everything
from everywhen.repository.verify.check_packs import confirmed, pack_findings
from everywhen.repository.verify.findings import BadRecord, Finding, Remedy, Verdict
from everywhen.repository.verify.survey import Survey
from everywhen.storage.base import AccessDenied, ObjectNotFound, OutOfSpace, ReadOnly

_MARKING_MEMORY = 128 << 20
_ATTEMPTS = 8
_NEVER = 1 << 62
"""No chunk is that popular: verify does not ask which ones are."""


@dataclass(frozen=True, slots=True)
class Watching:
    """Whom verify tells how far it has come: bytes read of all bytes, or things done of all things."""

    read: Callable[[int, int], None]
    step: Callable[[str, int, int | None], None]


@dataclass(slots=True)
class Judgement:
    """A verdict with what a repair needs to go on from it."""

    verdict: Verdict
    survey: Survey
    live: list[RecoveryPoint] = field(default_factory=list)
    """Points whose every chunk must be there, as far as they can be read."""
    bad: dict[tuple[PackId, int], str] = field(default_factory=dict)
    """Records (pack, offset) that cannot be read from any copy of their pack, and why not."""


@contextmanager
def judging(repository: Repository, watching: Watching, *, read_data: bool) -> Iterator[Judgement]:
    """Verify the repository; all points stay leased while the body runs. Raises StorageError, CacheDamaged."""
    with Survey(repository) as survey:
        run = _Run(repository, survey, watching)
        run.check_objects()
        with _leased(repository, run.judgement) as leased:
            run.judgement.verdict.leased = leased
            run.check_packs(read_data=read_data)
            run.check_live()
            run.check_journals(read_data=read_data)
            run.settle()
            run.note_damage()
            yield run.judgement


@contextmanager
def _leased(repository: Repository, judgement: Judgement) -> Iterator[bool]:
    """R1, R2 and R4 of docs/locking.md. False: the medium cannot be written."""
    name = f"leases/{random_word(repository.surroundings.randomness, 16)}"
    lease = repository.attend(name, "verify", [point.point for point in judgement.live])
    try:
        lease.begin()
    except (ReadOnly, AccessDenied, OutOfSpace):
        yield False
        return
    try:
        judgement.live = _still_there(repository, judgement.live)
        yield True
    finally:
        lease.end()


def _still_there(repository: Repository, points: list[RecoveryPoint]) -> list[RecoveryPoint]:
    """R2: a point deleted or condemned before the lease was there is none of ours. Asked of the store, not of the cache.

    One that is condemned afterwards is kept: gc looks for leases after it has condemned.
    """
    names = check_objects.names_of_pairs(repository.store, "points/") - _condemned(repository).points
    return [point for point in points if point.point in names]


class _Run:
    def __init__(self, repository: Repository, survey: Survey, watching: Watching) -> None:
        self._repository = repository
        self._survey = survey
        self._watching = watching
        self._suspicions = check_objects.Suspicions(repository.store)
        self._standing = check_points.Standing()
        self._known: dict[tuple[PackId, int], str] = {}
        self._condemned = _condemned(repository)
        self.judgement = Judgement(Verdict(), survey)
        self._verdict = self.judgement.verdict
        self._bad = self.judgement.bad

    def check_objects(self) -> None:
        """Everything but packs; chooses the live points."""
        repository, suspicions = self._repository, self._suspicions
        check_objects.check_superblock(suspicions)
        check_objects.check_key_slots(repository, suspicions)
        check_objects.check_settings(repository, suspicions)
        self._verdict.vms = check_objects.check_vms(repository, suspicions)
        check_objects.check_condemned(repository, suspicions)
        self._verdict.findings += check_objects.check_damage(repository)
        self._verdict.findings += check_minutes.check_minutes(repository)
        self._standing = check_points.check_points(repository, suspicions)
        drops, holds = check_objects.check_decisions(repository, suspicions)
        self._verdict.findings += check_points.check_chains(self._standing, drops)
        now = repository.surroundings.clock()
        held = {hold.point for hold in holds if hold.active(now)}
        gone = {point for drop in drops if drop.effective_ns <= now for point in drop.points} - held
        gone |= self._condemned.points
        points = [point for name, point in self._standing.points.items() if name not in gone]
        self.judgement.live = sorted(points, key=lambda point: (point.time_ns, point.number, point.point))
        self._verdict.points = len(self._standing.points) + len(self._standing.unreadable)

    def check_packs(self, *, read_data: bool) -> None:
        """Packs as wholes, and their records with `read_data`; without it, what earlier runs noted of them counts."""
        self._watching.step("packs", 0, None)
        self._survey.look()
        self._verdict.findings += pack_findings(self._survey, self._condemned.packs)
        self._verdict.packs = len(self._survey.packs)
        self._verdict.chunks = sum(seen.rows for seen in self._survey.packs.values())
        self._known = _noted_before(self._repository)
        if read_data:
            reading = read_everything(self._repository, self._survey, self._watching.read)
            self._verdict.bytes_read, self._verdict.chunks = reading.bytes_read, reading.chunks
            self._take(reading.bad)
            self._forget_mended()
        else:
            self._take(self._noted_records())

    def check_live(self) -> None:
        """I-2: all that live points need is there. What is not is traced to its cause, and to the ranges it leaves open."""
        for _ in range(_ATTEMPTS):
            if self._whole():
                return
            if not self._survey.look():
                break  # what is missing is not merely on its way to another pack
        self.judgement.live = _still_there(self._repository, self.judgement.live)
        self._trace()

    def check_journals(self, *, read_data: bool) -> None:
        """What lies between the points."""

        def progress(count: int) -> None:
            self._verdict.bytes_read += count

        found = check_journals.check_journals(self._repository, self.judgement.live, progress, read_data=read_data)
        self._verdict.findings += found

    def settle(self) -> None:
        """Suspicions that are still there become findings."""
        for finding in self._suspicions.settle():
            name = finding.object.removeprefix("points/")
            if name in self._standing.unreadable:
                finding.losses = [check_points.lost_point(name, self._standing)]
            self._verdict.findings.append(finding)
        self._verdict.findings = confirmed(self._repository, self._survey, self._verdict)
        for finding in self._verdict.findings:
            self._find_spare(finding)

    def note_damage(self) -> None:
        """Write what was found below `damage/`, so that nobody relies on it."""
        now = self._repository.surroundings.clock()
        by_pack: dict[PackId, dict[int, str]] = {}
        for (pack, offset), why in self._bad.items():
            if (pack, offset) not in self._known:
                by_pack.setdefault(pack, {})[offset] = why
        try:
            for pack, offsets in by_pack.items():
                damage.record(self._repository.documents, damage.PackDamage(pack, offsets, now))
        except (ReadOnly, AccessDenied, OutOfSpace):
            self._verdict.noted = False
        except FormatError as error:
            self._verdict.noted = False
            self._verdict.notes.append(f"what was found could not be noted: {error}")

    def _take(self, bad: list[BadRecord]) -> None:
        """Records found bad: findings of those that the other copy of the pack does not make good, and of the rest."""
        for record in bad:
            spare = self._good_twin(record)
            name = pack_object(record.pack)
            chunks = [record.name] if record.name else []
            if spare:
                where = twin_of(name) if record.twin else name
                finding = Finding("I-3", where, record.why, record.offset, chunks, spare, Remedy.MEND)
                self._verdict.findings.append(finding)
            elif (record.pack, record.offset) not in self._bad:
                self._add_bad(record)

    def _add_bad(self, record: BadRecord) -> None:
        place = (record.pack, record.offset)
        self._bad[place] = record.why
        self._survey.index.exclude_copies(record.pack, [record.offset])
        chunks = [record.name] if record.name else []
        known = place in self._known or record.pack in self._condemned.packs
        finding = Finding("I-3", pack_object(record.pack), record.why, record.offset, chunks, known=known)
        self._verdict.findings.append(finding)

    def _good_twin(self, bad: BadRecord) -> str:
        """Name of the pack's other copy, when it has the record as it was stored."""
        seen = self._survey.packs[bad.pack]
        if seen.sizes[not bad.twin] is None:
            return ""
        name = pack_object(bad.pack) if bad.twin else twin_of(pack_object(bad.pack))
        record = read_record(self._repository, bad.pack, bad.offset, copies=(not bad.twin,))
        return name if isinstance(record, Record) and record.name == bad.name else ""

    def _find_spare(self, finding: Finding) -> None:
        """Where another copy of a damaged record's chunk is."""
        for name in finding.chunks if finding.offset is not None and not finding.spare else ():
            copy = self._survey.index.lookup_one(name)
            if copy is not None and not finding.losses:
                finding.spare = f"{pack_object(copy.pack)} at byte {copy.offset}"

    def _noted_records(self) -> list[BadRecord]:
        """The records that were noted as damaged earlier, with the names that the indexes give them."""
        found = []
        for pack in {pack for pack, _ in self._known} & self._survey.packs.keys():
            index = self._survey.read_index(pack)
            names = {} if index is None else dict(zip(index.offsets.tolist(), index.names, strict=True))
            for (of, offset), why in self._known.items():
                if of == pack:
                    name = names[offset].tobytes() if offset in names else b""
                    found.append(BadRecord(pack, offset, name, why))
        return found

    def _forget_mended(self) -> None:
        """What an earlier run noted and this one read without fault."""
        noted = {pack for pack, _ in self._known}
        for pack in noted & self._survey.packs.keys() - self._survey.flawed.keys():
            if not any(place[0] == pack for place in self._bad):
                try:
                    damage.forget(self._repository.documents, pack)
                except (ReadOnly, AccessDenied):
                    return

    def _whole(self) -> bool:
        """Whether all that the live points need is there: one sorted comparison of names, nothing looked up one by one."""
        survey, live = self._survey, self.judgement.live

        def step(done: int, total: int) -> None:
            self._watching.step("moments", done, total)

        with Marker(survey.index, survey.directory + "/marking", _MARKING_MEMORY, threshold=_NEVER) as marker:
            try:
                marks = mark_live(self._repository, survey, live, marker, step)
            except (Damaged, FormatError):
                return False
        return not marks.missing.count and not marks.broken.count

    def _trace(self) -> None:
        self._watching.step("what is lost", 0, None)
        finder = LossFinder(self._survey.fetcher.read, self._survey.decodable)
        for record in unreadable_copies(self._repository, self._survey, lost_names(self.judgement.live, finder)):
            self._add_bad(record)
        causes = Causes(self._repository, self._survey, self._verdict.findings)
        for number, lost in losses(self.judgement.live, finder, causes.of).items():
            self._verdict.findings[number].losses += lost
        for record in causes.gone:
            self._bad.setdefault((record.pack, record.offset), record.why)


def _noted_before(repository: Repository) -> dict[tuple[PackId, int], str]:
    """What `damage/` says: reasons by pack and offset. A note that cannot be read is a finding of its own."""
    found: dict[tuple[PackId, int], str] = {}
    for word in repository.documents.names(damage.PREFIX):
        try:
            offsets = mapping(repository.documents.get(damage.PREFIX + word), "offsets")
            found |= {(PackId(bytes.fromhex(word)), int(offset)): str(why) for offset, why in offsets.items()}
        except (ObjectNotFound, FormatError, ValueError):
            continue
    return found


def _condemned(repository: Repository) -> Condemnation:
    """All packs and points that nobody relies on any more, as far as that can be read; what cannot is a finding of its own."""
    found, _ = read_condemned(repository.documents)
    packs = frozenset(pack for condemnation in found for pack in condemnation.packs)
    return Condemnation("", packs, frozenset(point for condemnation in found for point in condemnation.points), 0)
