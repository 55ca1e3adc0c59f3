# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `verify` found: one `Finding` for each damaged thing, with what is lost through it (rule 4.9.6: damage has a radius).

A finding without losses is damage that cost nothing: another good copy of the same thing is there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from everywhen.formats.ids import PackId
from everywhen.repository.ledger import Vm

Range = tuple[int, int]
"""First byte, and the byte after the last."""


class Remedy(Enum):
    """What `--repair` can do from the repository alone."""

    NONE = "none"
    COPY = "copy"
    """Write the object again from its other copy."""
    MEND = "mend"
    """Put the pack's object together from what is good of it and of its twin, byte for byte as it was."""
    EMPTY = "empty"
    """Copy what can be read to new packs, and condemn the pack: its index is lost."""
    DELETE = "delete"
    """The object only notes what is known anyway, and its being unreadable keeps others from working."""
    GIVE_UP = "give up"
    """Neither copy of a document can be read, and while it is there it stops others. Removed only when a person says so."""
    FORGET = "forget"
    """The object is statistics, which are lost; remove it."""


@dataclass(frozen=True, slots=True)
class Loss:
    """The same byte ranges of one disk (or file), in all of these moments.

    `vm`: id, '' when nobody knows. `kind`: 'disk', 'file', 'moment' (`name` '' and no ranges: the moment as a whole), or
    'journal' (the same: moments between these points and the next ones).
    `points`: (id, time in ns since 1970 UTC), oldest first; the time is 0 when it is not known.
    """

    vm: str
    kind: str
    name: str
    ranges: tuple[Range, ...]
    points: tuple[tuple[str, int], ...]


@dataclass(slots=True)
class Finding:
    """One damaged, missing or contradictory thing."""

    invariant: str
    """The number of the invariant that does not hold (design section 5), or of the rule (4.9.…, 4.10.…)."""
    object: str
    why: str
    offset: int | None = None
    """Where in the object, bytes; None: the object as a whole."""
    chunks: list[bytes] = field(default_factory=list)
    """Names of the chunks that it is about, as far as they are known."""
    spare: str = ""
    """Where a good copy is; '': none is known."""
    remedy: Remedy = Remedy.NONE
    known: bool = False
    """It was noted before, or its pack is condemned: nobody relies on it. Where nothing is lost, it goes with the next gc."""
    losses: list[Loss] = field(default_factory=list)
    repaired: str = ""
    """How it was repaired; '': it was not."""

    @property
    def stands(self) -> bool:
        """Whether somebody has to do something about it."""
        return not self.repaired and (bool(self.losses) or not self.known)


@dataclass(slots=True)
class Verdict:
    """The result of one verification."""

    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Sentences about what is no damage."""
    vms: dict[str, Vm] = field(default_factory=dict)
    points: int = 0
    packs: int = 0
    chunks: int = 0
    """Copies of chunks: read and hashed with `--read-data`, else known from the packs' indexes."""
    bytes_read: int = 0
    """Bytes of packs that were read with `--read-data`."""
    leased: bool = True
    """False: nothing could be written; then nothing kept another computer's gc from deleting moments meanwhile."""
    noted: bool = True
    """False: what was found could not be written into the repository."""

    @property
    def damaged(self) -> bool:
        """Whether anything stands."""
        return any(finding.stands for finding in self.findings)


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that is not what was stored. `name` is what the index says, b'' where it says nothing."""

    pack: PackId
    offset: int
    name: bytes
    why: str
    twin: bool = False
    """In the pack's second copy, not in the first."""


def merged(ranges: list[Range]) -> tuple[Range, ...]:
    """The same bytes in ascending ranges that do not touch."""
    result: list[Range] = []
    for start, end in sorted(ranges):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return tuple(result)
