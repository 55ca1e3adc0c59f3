# SPDX-License-Identifier: AGPL-3.0-or-later
"""Documents of which neither copy can be read, given up by a person: what stands in their way then goes on (rule 4.9.6).

What they said is lost. So that nothing else is lost with it, moments are rather kept than dropped, and what `verify` cannot
explain without the document is explained by a drop in its place.
"""

from __future__ import annotations

from collections.abc import Collection

from everywhen.formats.ids import random_word
from everywhen.repository.condemned import PREFIX, read_condemned
from everywhen.repository.gc.only_one import only_one
from everywhen.repository.ledger import Drop, Ledger, Undone
from everywhen.repository.repository import Repository
from everywhen.repository.verify.findings import Finding, Remedy

_MEANINGS = {
    "points/": "that moment is lost, and goes out of the way of gc",
    "holds/": "what it holds is not held any more, and the next prune may drop it",
    "drops/": "what it dropped and is still there are moments again",
    "undone/": "what it took back is not known: all that was dropped and is still there are moments again",
    "vms/": "that VM's name, policy and group are lost; its moments are there under a name that begins with unnamed-",
    "condemned/": "what it had chosen to delete, and is still there, is in use again; not while a gc runs anywhere",
    "settings/": "what was set is lost, and what is built in stands until it is set anew",
}
_WHY = "given up: it could not be read"


def meaning(name: str) -> str:
    """What it means to give up the document `name`; '' for what cannot be given up."""
    return next((words for prefix, words in _MEANINGS.items() if name.startswith(prefix)), "")


def of_condemned(name: str) -> bool:
    """Whether the document condemns: as long as nobody knows what, nothing may be stored anew."""
    return name.startswith(PREFIX)


def give_up(repository: Repository, findings: Collection[Finding], wanted: Collection[str]) -> int:
    """Give up the documents that are `wanted` and that are found to be unreadable; gives how many.

    Raises Busy, StorageError."""
    # Drops last: points that are given up are not theirs to explain.
    chosen = sorted(
        (one for one in findings if one.remedy is Remedy.GIVE_UP and one.object in wanted),
        key=lambda one: one.object.startswith("drops/"),
    )
    for finding in chosen:
        kind, _, word = finding.object.partition("/")
        if kind == "points":
            _put_drop(repository, random_word(repository.surroundings.randomness, 16), [word])
        if kind == "undone":
            _take_all_back(repository)
        if of_condemned(finding.object):
            _uncondemn(repository, finding.object)
        else:
            repository.documents.delete(finding.object)
        finding.repaired = f"given up: {meaning(finding.object)}"
        if kind == "drops":
            _explain(repository, word, findings)
    return len(chosen)


def _uncondemn(repository: Repository, name: str) -> None:
    """Let what was condemned be used again. That is as if it never had been, for what no gc deletes any more: so none may be at
    work, and one that was taken for dead looks once more before it deletes (`gc.py`)."""
    with only_one(repository, dry_run=True):
        repository.documents.delete(name)


def _put_drop(repository: Repository, word: str, points: list[str]) -> None:
    now, holder = repository.surroundings.clock(), repository.surroundings.holder
    Ledger(repository.documents).put_drop(Drop(word, points, now, now, _WHY, f"{holder.user}@{holder.host}"))


def _explain(repository: Repository, word: str, findings: Collection[Finding]) -> None:
    """Moments that are gone although no drop that can be read says so: this one may have, and a new one in its place does."""
    gone = [one for one in findings if one.remedy is Remedy.NONE and one.object.startswith("points/") and one.losses]
    if not gone:
        return
    _put_drop(repository, word, [one.object.removeprefix("points/") for one in gone])
    for one in gone:
        one.losses = []
        one.repaired = f"taken to be one of those that drops/{word} dropped"


def _take_all_back(repository: Repository) -> None:
    """Nobody knows what was taken back: so everything is that gc has not begun to delete."""
    documents, now, holder = repository.documents, repository.surroundings.clock(), repository.surroundings.holder
    there = set(documents.names("points/"))
    there -= {point for one in read_condemned(documents)[0] for point in one.points}
    ledger = Ledger(documents, unreadable=[])
    for drop in ledger.all_drops():
        points = [point for point in drop.points if point in there]
        if points:
            back = random_word(repository.surroundings.randomness, 16)
            ledger.put_undone(Undone(back, drop.drop, points, now, f"{holder.user}@{holder.host}"))
