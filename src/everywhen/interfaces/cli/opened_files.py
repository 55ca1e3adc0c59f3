# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the commands on guests' files share: a moment opened by its address, and what is said of it and of paths in it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import tzinfo

from everywhen.guest.errors import GuestError
from everywhen.guest.tree import Entry
from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.cli.missing_paths import MissingPath
from everywhen.interfaces.cli.shipping import ship_newest
from everywhen.repository.repository import Repository
from everywhen.services.addresses import Address, parse_address
from everywhen.services.failures import WrongUsage
from everywhen.services.times import local_time, rfc3339
from everywhen.services.view.files import GuestFiles, Place
from everywhen.services.view.moments import FAILURES, MomentView, OpenMoments

_LOCAL_TIMES = "Times here are of the guest's own zone; the file system does not say which."
IN_MEMORY = (
    "A guest keeps what is written in its memory for up to about 30 s: what it did just before the newest moment may not be on "
    "the disk yet."
)


@dataclass(frozen=True, slots=True)
class OpenedFiles:
    """A moment whose files are looked at."""

    context: Context
    address: Address
    view: MomentView
    files: GuestFiles
    repository: Repository
    told: set[str] = field(default_factory=set)
    """What `note` has said."""

    @property
    def heading(self) -> str:
        """Which moment it is."""
        return self.view.moment.found.words(self.view.vm.name, self.context.zone)

    @property
    def document(self) -> dict[str, object]:
        """Which moment it is, for programs."""
        opened = self.view.moment
        return {
            "vm": self.view.vm.name,
            "point": opened.point.point,
            "time": rfc3339(opened.found.moment.time_ns),
            "writes_after_point": opened.found.writes_after,
        }

    def place(self) -> Place:
        """What the address leads to. Raises Failure with what there is instead."""
        try:
            return self.files.place(self.address.disk, self.address.path or "/")
        except GuestError as error:
            at = local_time(self.view.moment.found.moment.time_ns, self.context.zone)
            raise MissingPath(self.files, self.address, self.view.vm.name, at).failure(error) from error

    def note(self, place: Place) -> None:
        """Say what whoever looks there must know, once. Asked again at the end it tells of the volumes that were opened on the
        way, because they are mounted there.
        """
        for text in (*self.files.problems, *place.system.notes):
            if text not in self.told:
                self.told.add(text)
                self.context.output.warn(text)
        if place.system.local_times and _LOCAL_TIMES not in self.told:
            self.told.add(_LOCAL_TIMES)
            self.context.output.note(_LOCAL_TIMES)


@contextmanager
def opened_files(context: Context, moment: str, what: str) -> Iterator[OpenedFiles]:
    """The files of a moment, while the body runs; `what` is told in the listing of what is open. Raises Failure."""
    with files_of_several(context, [moment], what) as (opened,):
        yield opened


@contextmanager
def files_of_several(context: Context, moments: Sequence[str], what: str) -> Iterator[list[OpenedFiles]]:
    """The same of several moments."""
    addresses = [parse_address(moment) for moment in moments]
    with context.repository() as repository, ExitStack() as stack:
        opening = OpenMoments(
            repository,
            what,
            zone=context.zone,
            monotonic=time.monotonic,
            linger_s=0.0,
            before=lambda vm: ship_newest(context, vm),
        )
        stack.callback(opening.close)
        opened = []
        for address in addresses:
            view = stack.enter_context(opening.used(address))
            files = GuestFiles(view.disks, FAILURES)
            stack.callback(files.close)
            opened.append(OpenedFiles(context, address, view, files, repository))
        yield opened


def path_demanded(moment: str) -> None:
    """Raises WrongUsage where an address has no path."""
    if parse_address(moment).path is None:
        raise WrongUsage(f"{moment}: which file? Say MOMENT:/path.", on=moment, do=[f"everywhen ls {moment}"])


def volume_demanded(moment: str) -> None:
    """Raises WrongUsage where an address has a disk and no path, which would begin with a volume."""
    address = parse_address(moment)
    if address.disk is not None and address.path is None:
        raise WrongUsage(f"{moment}: which volume? Say {moment}:/p1.", on=moment, do=[f"everywhen ls {moment}"])


def guest_time(time_ns: int | None, zone: tzinfo) -> str:
    """A time as a guest has it, which may be any number; for a column."""
    if time_ns is None:
        return "-"
    try:
        return local_time(time_ns, zone)
    except (ValueError, OverflowError, OSError):
        return "?"


def time_document(time_ns: int | None) -> str | None:
    """The same for programs; None where it is beyond the years that can be written."""
    try:
        return None if time_ns is None else rfc3339(time_ns)
    except (ValueError, OverflowError, OSError):
        return None


def entry_document(entry: Entry) -> dict[str, object]:
    """An entry, for programs."""
    return {
        "name": entry.name,
        "kind": entry.kind.value,
        "size": entry.size,
        "mode": None if entry.mode is None else f"{entry.mode:04o}",
        "uid": entry.uid,
        "gid": entry.gid,
        "links": entry.links,
        "modified": time_document(entry.times.modified),
        "changed": time_document(entry.times.changed),
        "accessed": time_document(entry.times.accessed),
        "created": time_document(entry.times.created),
        "target": entry.target,
        "allocated": entry.allocated,
    }


def write_raw(names: Iterable[str]) -> None:
    """Names as the guest has them, each with a NUL after it, to standard output."""
    for name in names:
        try:
            written = name.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # NTFS: half of a pair
            written = name.encode("utf-8", "surrogatepass")
        sys.stdout.buffer.write(written + b"\0")
    sys.stdout.buffer.flush()
