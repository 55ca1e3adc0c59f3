# SPDX-License-Identifier: AGPL-3.0-or-later
"""Freeing the space of dropped moments while backups and restores run: steps G1 to G10 of docs/locking.md.

Safe to interrupt at any instruction: what is condemned stays condemned, and the next run goes on with it.
Moving chunks (`_rescue`) serves three ends with one mechanism: compacting packs that are partly dead, merging packs
that are very small, and saving what a writer came to need of a pack that was already condemned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from everywhen.formats.errors import FormatError
from everywhen.formats.ids import PackId, PointId, pack_object, pack_of_object, random_word
from everywhen.formats.point import Tombstone
from everywhen.repository import damage
from everywhen.repository.blockmap import names_needed
from everywhen.repository.condemned import Condemnation, list_condemned, publish, withdraw
from everywhen.repository.errors import Busy, Damaged
from everywhen.repository.marking import Marker
from everywhen.repository.marks import Marks, PackUse
from everywhen.repository.packs import PACK_SIZE
from everywhen.repository.presence import SECOND, Attendance, Presence, list_presences
from everywhen.repository.repository import Repository
from everywhen.repository.rescue import rescue, second_copies
from everywhen.repository.roots import Roots, find_roots
from everywhen.repository.space import make_reserve, release_reserve
from everywhen.repository.twins import TWINS, delete_twice
from everywhen.storage.base import AlreadyExists, ObjectNotFound, OutOfSpace

LOCK = "lock/gc"
GRACE = 24 * 3600 * SECOND
"""How long what a fenced writer stored is kept, so that its next try need not store it again."""

_DEAD_SHARE = 3
"""A pack is rewritten when more than one part in so many of it is dead: at most half as much is copied as is freed."""

_SMALL_PACK = PACK_SIZE // 8
_MANY_SMALL = 16
_POLL_SECONDS = 1.0
_MARKING_MEMORY = 256 << 20
_POPULAR = 64


@runtime_checkable
class Sweeping(Protocol):
    """A store in which interrupted puts leave something behind."""

    def sweep_temporaries(self, *, now_ns: int, older_than_ns: int) -> int:
        """Remove what is older; how many there were."""


Note = Callable[[str, int, int | None], None]
"""Told what is being done, and how much of how much of it."""


@dataclass(slots=True)
class Collected:
    """What a run did. Figures in bytes unless they count."""

    points_deleted: int = 0
    packs_deleted: int = 0
    bytes_freed: int = 0
    bytes_copied: int = 0
    packs_waiting: int = 0
    """Condemned, but a writer that began earlier is still at work: the next run deletes them."""
    sessions: list[Presence] = field(default_factory=list)
    """Those writers."""
    damaged: list[str] = field(default_factory=list)
    """Packs that could not be emptied because something in them cannot be read; they stay."""
    missing: int = 0
    """Chunks that live points need and nobody has: `verify` says whose."""


def collect(repository: Repository, *, wait: bool, dry_run: bool, note: Note, pause: Callable[[float], None]) -> Collected:
    """Free what nobody needs. `pause` sleeps (seconds). Raises Busy, Damaged, StorageError, FormatError."""
    repository.unlocked.superblock.require("gc")
    with _only_one(repository):
        collected = _Run(repository, note, pause).run(wait=wait, dry_run=dry_run)
        if isinstance(repository.store, Sweeping) and not dry_run:
            repository.store.sweep_temporaries(now_ns=repository.surroundings.clock(), older_than_ns=GRACE)
        return collected


def mark(repository: Repository, roots: Roots, twinned: set[PackId], note: Note) -> Marks:
    """Which copies of which chunks the live points need. Raises Damaged, FormatError."""
    seen: set[bytes] = set()
    scratch = str(repository.cache / "scratch")
    with Marker(repository.index, scratch, _MARKING_MEMORY, threshold=_POPULAR, preferred=twinned) as marker:
        for done, point in enumerate(roots.live, 1):
            note("finding what is needed", done, len(roots.live))
            for tree in point.trees():
                for names in names_needed(repository.fetcher.read_many, tree, seen):
                    marker.add(names)
        return marker.finish()


class _Run:
    def __init__(self, repository: Repository, note: Note, pause: Callable[[float], None]) -> None:
        self._repository = repository
        self._documents = repository.documents
        self._note = note
        self._pause = pause
        self._result = Collected()
        self._run = "gc-" + random_word(repository.surroundings.randomness, 12)

    def run(self, *, wait: bool, dry_run: bool) -> Collected:
        repository = self._repository
        repository.refresh()
        twinned = self._twinned()
        sessions = list_presences(self._documents, "sessions/")
        roots = self._roots()
        if not dry_run:
            self._end_sessions(sessions, roots)
        marks = mark(repository, roots, twinned, self._note)
        chosen = self._choose(marks, {session.name.removeprefix("sessions/") for session in sessions}, roots)
        adopted = list_condemned(self._documents)
        if dry_run:
            waiting = {pack for condemnation in adopted for pack in condemnation.packs}
            return self._predict(marks, {use.pack for use in chosen} | waiting, len(roots.doomed))
        self._result.bytes_copied += second_copies(repository, marks, twinned, self._run)
        if chosen:
            packs = frozenset(use.pack for use in chosen)
            publish(self._documents, Condemnation(self._run, packs, repository.surroundings.clock()))
        elif not adopted and not roots.doomed:
            return self._result
        if not self._wait_for_writers(wait=wait):
            return self._result
        self._finish(twinned)
        return self._result

    def _roots(self) -> Roots:
        roots = find_roots(self._repository)
        if roots.unreadable:
            raise Damaged(
                f"gc stops, nothing was deleted: {roots.unreadable[0]}. What that moment needs is not known. "
                "Repair it (everywhen verify --repair) or drop it."
            )
        return roots

    def _twinned(self) -> set[PackId]:
        names = (found.name.removeprefix(TWINS) for found in self._repository.store.list(TWINS + "packs/"))
        return {pack for name in names if (pack := pack_of_object(name))}

    def _end_sessions(self, sessions: list[Presence], roots: Roots) -> None:
        """G3: forget sessions whose point is there, fence those whose writer seems dead."""
        committed = {point.point for point in (*roots.live, *roots.doomed)}
        for session in sessions:
            point = PointId(session.name.removeprefix("sessions/"))
            if point in roots.tombstones:
                self._documents.delete(session.name)
            elif point not in committed:
                self._fence_expired(session)

    def _fence_expired(self, session: Presence) -> bool:
        """Put a tombstone where the writer wanted to put its point, if the writer seems dead."""
        now = self._repository.surroundings.clock()
        if not session.expired(self._repository.surroundings.holder, now):
            return False
        point = PointId(session.name.removeprefix("sessions/"))
        # Whether this wins or the writer's commit did: either way the writer's fate is decided now.
        self._repository.points.bury(Tombstone(point, now, f"{session.what} on {session.holder.host} went silent"))
        self._documents.delete(session.name)
        return True

    def _choose(self, marks: Marks, open_sessions: set[str], roots: Roots) -> list[PackUse]:
        """G5: packs worth deleting or rewriting, not under a writer that may still commit or try again."""
        uses = [use for use in marks.uses() if not self._repository.index.is_excluded(use.pack)]
        small = [use for use in uses if use.stored_bytes < _SMALL_PACK]
        merge = {use.pack for use in small} if len(small) >= _MANY_SMALL else set()
        now = self._repository.surroundings.clock()
        # A damaged copy that is the only one may still be repaired by hand: its pack stays until nothing is missing.
        spared = damage.damaged_copies(self._documents).keys() if marks.missing.count or marks.broken.count else set()
        chosen = []
        for use in uses:
            dead = use.stored_bytes - use.live_bytes
            if (dead * _DEAD_SHARE <= use.stored_bytes and use.live_rows and use.pack not in merge) or use.pack in spared:
                continue
            try:
                session = self._repository.packs.open(use.pack).header.session
            except (ObjectNotFound, FormatError):
                continue  # gone, or for verify to judge
            stone = roots.tombstones.get(PointId(session))
            if session in open_sessions or (stone and now - stone.fenced_ns < GRACE):
                continue
            chosen.append(use)
        return chosen

    def _wait_for_writers(self, *, wait: bool) -> bool:
        """G6: whether every writer that may have begun before something was condemned has ended or was fenced."""
        before = {session.name for session in list_presences(self._documents, "sessions/")}
        while True:
            still = [s for s in list_presences(self._documents, "sessions/") if s.name in before]
            still = [session for session in still if not self._ended(session)]
            if not still:
                return True
            if not wait:
                self._result.sessions = still
                self._result.packs_waiting = sum(len(c.packs) for c in list_condemned(self._documents))
                return False
            self._note(f"waiting for {still[0].what} on {still[0].holder.host}", 0, None)
            self._pause(_POLL_SECONDS)

    def _ended(self, session: Presence) -> bool:
        return session.name.removeprefix("sessions/") == self._run or self._fence_expired(session)

    def _finish(self, twinned: set[PackId]) -> None:
        """G7 to G10, for everything that is condemned, whoever condemned it."""
        repository = self._repository
        condemned = list_condemned(self._documents)
        # From here on no writer depends on a condemned pack that the points listed now do not show.
        repository.refresh()
        roots = self._roots()
        marks = mark(repository, roots, twinned | self._twinned(), self._note)
        self._result.missing = marks.missing.count + marks.broken.count
        packs = {pack for condemnation in condemned for pack in condemnation.packs}
        kept = rescue(repository, marks, packs, twinned, self._run, self._note)
        self._result.bytes_copied += kept.bytes_copied
        self._result.damaged += kept.damaged.values()
        self._delete_points(roots)
        for condemnation in condemned:
            self._delete_packs(condemnation, condemnation.packs - kept.damaged.keys(), twinned)
            if not condemnation.packs & kept.damaged.keys():
                withdraw(self._documents, condemnation.run)

    def _delete_points(self, roots: Roots) -> None:
        """G9."""
        sessions = {session.name.removeprefix("sessions/") for session in list_presences(self._documents, "sessions/")}
        for point in roots.doomed:
            if point.point in sessions:
                # Its writer may yet repeat the commit whose answer it never got: the name must stay taken.
                stone = Tombstone(point.point, self._repository.surroundings.clock(), "the moment was dropped")
                self._repository.points.bury(stone, replace=True)
            else:
                self._repository.points.delete(point.point)
            self._result.points_deleted += 1

    def _delete_packs(self, condemnation: Condemnation, packs: frozenset[PackId], twinned: set[PackId]) -> None:
        """G10."""
        store = self._repository.store
        for done, pack in enumerate(sorted(packs)):
            self._note("deleting", done, len(packs))
            try:
                size = store.size(pack_object(pack))
            except ObjectNotFound:
                continue  # a run that was interrupted deleted it
            if pack in twinned:
                delete_twice(store, pack_object(pack))
                size *= 2
            else:
                store.delete(pack_object(pack))
            damage.forget(self._documents, pack)
            self._result.packs_deleted += 1
            self._result.bytes_freed += size
        self._repository.index.remove_packs(condemnation.packs)
        self._repository.fingerprints.remove_packs(condemnation.packs)

    def _predict(self, marks: Marks, packs: set[PackId], points: int) -> Collected:
        for use in marks.uses():
            if use.pack in packs:
                self._result.packs_deleted += 1
                self._result.bytes_freed += use.stored_bytes
                self._result.bytes_copied += use.live_bytes
        self._result.points_deleted = points
        return self._result


@contextmanager
def _only_one(repository: Repository) -> Iterator[None]:
    """G1. Also gives up the reserve when there is no room for the lock, and makes it again at the end."""
    now = repository.surroundings.clock()
    presence = Presence(LOCK, repository.surroundings.holder, "gc", [], now, now)
    attendance = Attendance(repository.documents, presence, repository.surroundings.clock)
    try:
        _take(repository, attendance)
    except OutOfSpace:
        release_reserve(repository.store)
        _take(repository, attendance)
    try:
        yield
    finally:
        attendance.end()
        make_reserve(repository.store)


def _take(repository: Repository, attendance: Attendance) -> None:
    try:
        attendance.begin(if_absent=True)
    except AlreadyExists:
        for other in list_presences(repository.documents, "lock/"):
            if not other.expired(repository.surroundings.holder, repository.surroundings.clock()):
                raise Busy(
                    f"gc is running on {other.holder.host} (pid {other.holder.pid}). Backups and restores are not "
                    "affected; a second gc cannot start."
                ) from None
        attendance.begin()
