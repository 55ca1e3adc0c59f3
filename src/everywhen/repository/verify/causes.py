# SPDX-License-Identifier: AGPL-3.0-or-later
"""From a chunk that cannot be read to the finding that it was lost through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from everywhen.formats.ids import pack_object
from everywhen.formats.pack import Record
from everywhen.repository.gc.records import read_record
from everywhen.repository.repository import Repository
from everywhen.repository.verify.findings import BadRecord, Finding
from everywhen.repository.verify.survey import Survey

_NOWHERE = "packs/"


class Causes:
    """Looks causes up among `findings`; adds one to it for chunks that nothing explains. Make it when all packs are judged."""

    def __init__(self, repository: Repository, survey: Survey, findings: list[Finding]) -> None:
        self._repository = repository
        self._survey = survey
        self._findings = findings
        self._by_name: dict[bytes, list[int]] = {}
        self._by_pack: dict[str, int] = {}
        self._known: dict[bytes, list[int]] = {}
        for number, finding in enumerate(findings):
            for name in finding.chunks:
                self._by_name.setdefault(name, []).append(number)
            if finding.offset is None and not finding.spare:
                self._by_pack.setdefault(finding.object, number)
        self._nowhere: int | None = None
        self.gone: list[BadRecord] = []
        """Records that a cache still remembers, of packs whose index is lost."""

    def of(self, name: bytes) -> list[int]:
        """Numbers of the findings that chunk `name` was lost through."""
        if name not in self._known:
            self._known[name] = self._find(name)
        return self._known[name]

    def _find(self, name: bytes) -> list[int]:
        found = self._by_name.get(name)
        if found:
            return found
        for copy in self._survey.index.all_copies(name):
            record = read_record(self._repository, copy.pack, copy.offset)
            if isinstance(record, Record) and record.bases:
                # The delta itself is whole: it went with its base.
                lost = [base for base in record.bases if self._survey.index.lookup_one(base, full_only=True) is None]
                return sorted({number for base in lost for number in self.of(base)})
        return [self._by_place(name)]

    def _by_place(self, name: bytes) -> int:
        """Where it was, if the machine's own cache remembers it; else the finding about chunks that are nowhere."""
        for copy in self._repository.index.all_copies(name):
            number = self._by_pack.get(pack_object(copy.pack))
            if number is not None:
                self.gone.append(BadRecord(copy.pack, copy.offset, name, "the record is gone"))
                self._findings[number].chunks.append(name)
                return number
        if self._nowhere is None:
            self._nowhere = len(self._findings)
            self._findings.append(Finding("I-2", _NOWHERE, ""))
        finding = self._findings[self._nowhere]
        finding.chunks.append(name)
        count = len(finding.chunks)
        finding.why = f"{count} chunk{'s' if count != 1 else ''} that moments need {'are' if count != 1 else 'is'} in no pack"
        return self._nowhere


def unreadable_copies(repository: Repository, survey: Survey, lost: Mapping[bytes, bool]) -> Iterator[BadRecord]:
    """Copies of lost block map nodes that are there, and cannot be read."""
    for name, is_node in lost.items():
        for copy in survey.index.all_copies(name) if is_node else ():
            record = read_record(repository, copy.pack, copy.offset)
            if isinstance(record, str):
                yield BadRecord(copy.pack, copy.offset, name, record)
