# SPDX-License-Identifier: AGPL-3.0-or-later
"""Freeing the space of dropped moments while backups and restores run: steps G1 to G10 of docs/locking.md.

Safe to interrupt at any instruction (I-9): what is condemned stays condemned, and the next run goes on with it. No live
point is made worse (I-4): its chunks are copied before their pack goes.
Moving chunks (`rescue.py`) serves three ends with one mechanism: compacting packs that are partly dead, merging packs
that are very small, and saving what a writer came to need of a pack that was already condemned.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from everywhen.formats.errors import FormatError
from everywhen.formats.ids import PackId, PointId, pack_object, pack_of_object, random_word
from everywhen.formats.point import Tombstone
from everywhen.repository import damage
from everywhen.repository.condemned import Condemnation, list_condemned, publish, still_published, withdraw
from everywhen.repository.errors import Busy, CacheFull, Damaged
from everywhen.repository.folders import FOLDERS
from everywhen.repository.gc.journals import sweep_journals
from everywhen.repository.gc.live import mark_live
from everywhen.repository.gc.marking import Marker
from everywhen.repository.gc.marks import Marks, PackUse
from everywhen.repository.gc.minutes import thin_minutes
from everywhen.repository.gc.only_one import only_one
from everywhen.repository.gc.rescue import Vanished, rescue, second_copies
from everywhen.repository.gc.roots import Roots, find_roots
from everywhen.repository.packs import PACK_SIZE
from everywhen.repository.presence import SECOND, Presence, list_presences
from everywhen.repository.repository import Repository
from everywhen.repository.space import release_reserve
from everywhen.repository.twins import TWINS, delete_twice, twin_of
from everywhen.storage.base import ObjectNotFound, OutOfSpace

GRACE = 24 * 3600 * SECOND
"""How long what a fenced writer stored is kept, so that its next try need not store it again."""

_DEAD_SHARE = 3
"""A pack is rewritten when more than one part in so many of it is dead: at most twice as much is copied as is freed."""

_SMALL_PACK = PACK_SIZE // 8
_MANY_SMALL = 16
_POLL_SECONDS = 1.0
_MARKING_MEMORY = 256 << 20
_POPULAR = 64
_AT_ONCE = 128 << 20
"""Bytes copied before the packs they came from are deleted: half of the smallest reserve."""
_OVERTAKEN = 5
_BESIDE = "Another gc deletes beside this one. What it does not free the next run will; nothing needed is lost."


@runtime_checkable
class Sweeping(Protocol):
    """A store in which interrupted puts leave something behind."""

    def sweep_temporaries(self, folders: Collection[str], *, now_ns: int, older_than_ns: int) -> int:
        """Remove what is older, in the root and below these folders; how many there were."""


Note = Callable[[str, int, int | None], None]
"""Told what is being done, and how much of how much of it."""


@dataclass(slots=True)
class Collected:
    """What a run did. Figures in bytes unless they count."""

    points_deleted: int = 0
    packs_deleted: int = 0
    segments_deleted: int = 0
    """Of journals."""
    days_thinned: int = 0
    """Of statistics: days whose minutes became hours, or whose hours became one row."""
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
    with only_one(repository, dry_run=dry_run):
        collected = Collected()
        try:
            _Run(repository, note, pause, collected).run(wait=wait, dry_run=dry_run)
        except (OutOfSpace, CacheFull):
            # The caches may lie on the same disk. What is condemned stays condemned: a second run goes on, with the reserve
            # and with what is quite dead first.
            if dry_run:
                raise
            release_reserve(repository.store)
            _Run(repository, note, pause, collected, full=True).run(wait=wait, dry_run=dry_run)
        collected.segments_deleted, freed = sweep_journals(repository, dry_run=dry_run)
        collected.bytes_freed += freed
        collected.days_thinned = thin_minutes(repository, dry_run=dry_run)
        if isinstance(repository.store, Sweeping) and not dry_run:
            repository.store.sweep_temporaries(FOLDERS, now_ns=repository.surroundings.clock(), older_than_ns=GRACE)
        return collected


def mark(repository: Repository, roots: Roots, twinned: set[PackId], note: Note) -> Marks:
    """Which copies of which chunks the live points need. Raises Damaged, FormatError."""
    scratch = str(repository.cache / "scratch")

    def step(done: int, total: int) -> None:
        note("finding what is needed", done, total)

    with Marker(repository.index, scratch, _MARKING_MEMORY, threshold=_POPULAR, preferred=twinned) as marker:
        marks = mark_live(repository, repository, roots.live, marker, step)
    if marks.broken.count > len(marks.broken.names):
        # Only a sample of them was looked at: among the others may be some whose only good copy would be deleted.
        raise Damaged(
            f"gc stops, nothing was deleted: {marks.broken.count:,} chunks that moments need cannot be decoded by the copy "
            "at hand. Find out what is lost: everywhen verify"
        )
    return marks


class _Run:
    def __init__(
        self, repository: Repository, note: Note, pause: Callable[[float], None], result: Collected, *, full: bool = False
    ) -> None:
        """What is done is added to `result`. `full`: there is hardly room to write."""
        self._full = full
        self._repository = repository
        self._documents = repository.documents
        self._note = note
        self._pause = pause
        self._result = result
        self._run = "gc-" + random_word(repository.surroundings.randomness, 12)

    def run(self, *, wait: bool, dry_run: bool) -> None:
        repository = self._repository
        repository.refresh()
        twinned = self._twinned()
        sessions = list_presences(self._documents, "sessions/")
        roots, marks = self._marked(self._roots, twinned)
        if not dry_run:
            self._end_sessions(sessions, roots)
        chosen = self._choose(
            marks, {session.name.removeprefix("sessions/") for session in sessions} - _committed(roots), roots
        )
        adopted = list_condemned(self._documents)
        if dry_run:
            waiting = {pack for condemnation in adopted for pack in condemnation.packs}
            self._predict(marks, {use.pack for use in chosen} | waiting, len(roots.doomed))
            return
        if not self._full:
            self._result.bytes_copied += second_copies(repository, marks, twinned, self._run)
        if chosen or roots.doomed:
            packs = frozenset(use.pack for use in chosen)
            points = frozenset(point.point for point in roots.doomed)
            publish(self._documents, Condemnation(self._run, packs, points, repository.surroundings.clock()))
        elif not adopted:
            return
        # Only this may be deleted: for what somebody else condemns from now on, we have not waited.
        condemned = list_condemned(self._documents)
        if not self._wait_for_writers(wait=wait):
            return
        for _ in range(_OVERTAKEN):
            try:
                self._finish(condemned)
                return
            except Vanished:
                continue
        raise Busy(_BESIDE)

    def _marked(self, find: Callable[[], Roots], twinned: set[PackId]) -> tuple[Roots, Marks]:
        """Live points and what they need; again when a collector that was taken over deletes points under us."""
        for _ in range(_OVERTAKEN):
            roots = find()
            try:
                return roots, mark(self._repository, roots, twinned, self._note)
            except Damaged:
                if _committed(roots) <= _committed(self._roots()):
                    raise
        raise Busy(_BESIDE)

    def _roots(self) -> Roots:
        roots = find_roots(self._repository)
        if roots.unreadable:
            raise Damaged(
                f"gc stops, nothing was deleted: {roots.unreadable[0]}. What that moment needs is not known: put a good copy "
                "back in its place, or give it up (everywhen verify says how)"
            )
        return roots

    def _twinned(self) -> set[PackId]:
        names = (found.name.removeprefix(TWINS) for found in self._repository.store.list(TWINS + "packs/"))
        return {pack for name in names if (pack := pack_of_object(name))}

    def _end_sessions(self, sessions: list[Presence], roots: Roots) -> None:
        """G3: forget sessions whose point is there, fence those whose writer seems dead."""
        committed = _committed(roots)
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
        # Whether this wins or the writer's commit did: either way the writer's fate is decided now. If its commit did,
        # the session stays and says that its writer may not know it yet (`_delete_points`).
        if self._repository.points.bury(Tombstone(point, now, f"{session.what} on {session.holder.host} went silent")):
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
        return self._repository.points.is_decided(PointId(session.name.removeprefix("sessions/"))) or self._fence_expired(
            session
        )

    def _finish(self, condemned: list[Condemnation]) -> None:
        """G7 to G10, for everything that was condemned before we waited, whoever condemned it. Raises Vanished."""
        repository = self._repository
        condemned = still_published(self._documents, condemned)
        # From here on no writer depends on a condemned pack that the points listed now do not show.
        repository.refresh()
        twinned = self._twinned()
        points = {point for condemnation in condemned for point in condemnation.points}
        roots, marks = self._marked(lambda: self._roots().spare(points), twinned)
        self._result.missing = marks.missing.count + marks.broken.count
        self._demand_published(condemned)
        self._delete_points(roots)
        kept: dict[PackId, str] = {}
        for batch in self._batches(marks, {pack for condemnation in condemned for pack in condemnation.packs}):
            needed = [pack for pack in batch if len(marks.live_rows(pack))]
            rescued = rescue(repository, marks, needed, twinned, self._run, self._note)
            self._result.bytes_copied += rescued.bytes_copied
            kept |= rescued.damaged
            self._demand_published(condemned)
            self._delete_packs([pack for pack in batch if pack not in kept], twinned)
        self._result.damaged = list(kept.values())
        for condemnation in condemned:
            if not condemnation.packs & kept.keys() and not condemnation.points & roots.leased:
                withdraw(self._documents, condemnation.run)

    def _demand_published(self, condemned: list[Condemnation]) -> None:
        """What is not condemned any more, since a person gave it up while we stood still, others may use. Raises Vanished."""
        if len(still_published(self._documents, condemned)) < len(condemned):
            raise Vanished("a condemnation")

    def _batches(self, marks: Marks, packs: set[PackId]) -> Iterator[list[PackId]]:
        """The packs to empty and delete, so many together that little room is needed.

        What is quite dead comes last, since it may hold other copies of what turns out to be damaged; but first when
        there is no room.
        """
        live = {use.pack: use.live_bytes for use in marks.uses() if use.pack in packs and use.live_rows}
        dead = sorted(packs - live.keys())
        if self._full:
            yield dead
        batch: list[PackId] = []
        size = 0
        for pack in sorted(live):
            if batch and size + live[pack] > _AT_ONCE:
                yield batch
                batch, size = [], 0
            batch.append(pack)
            size += live[pack]
        yield batch if self._full else [*batch, *dead]

    def _delete_points(self, roots: Roots) -> None:
        """G9. Before anything that they need is deleted."""
        sessions = {session.name.removeprefix("sessions/") for session in list_presences(self._documents, "sessions/")}
        for point in roots.doomed:
            if point.point in sessions:
                # Its writer may yet repeat the commit whose answer it never got: the name must stay taken.
                stone = Tombstone(point.point, self._repository.surroundings.clock(), "the moment was dropped")
                self._repository.points.bury(stone, replace=True)
            else:
                self._repository.points.delete(point.point)
            self._result.points_deleted += 1

    def _delete_packs(self, packs: list[PackId], twinned: set[PackId]) -> None:
        """G10."""
        store = self._repository.store
        for done, pack in enumerate(packs):
            self._note("deleting", done, len(packs))
            name = pack_object(pack)
            sizes = [self._size(name), self._size(twin_of(name)) if pack in twinned else None]
            if sizes == [None, None]:
                continue  # a run that was interrupted deleted it
            if pack in twinned:
                delete_twice(store, name)
            else:
                store.delete(name)
            damage.forget(self._documents, pack)
            self._result.packs_deleted += 1
            self._result.bytes_freed += sum(size for size in sizes if size)
        self._repository.index.remove_packs(packs)
        self._repository.fingerprints.remove_packs(packs)

    def _size(self, name: str) -> int | None:
        try:
            return self._repository.store.size(name)
        except ObjectNotFound:
            return None

    def _predict(self, marks: Marks, packs: set[PackId], points: int) -> None:
        for use in marks.uses():
            if use.pack in packs:
                self._result.packs_deleted += 1
                self._result.bytes_freed += use.stored_bytes
                self._result.bytes_copied += use.live_bytes
        self._result.points_deleted = points


def _committed(roots: Roots) -> set[str]:
    return {point.point for point in (*roots.live, *roots.doomed)}
