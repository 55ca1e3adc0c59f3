# SPDX-License-Identifier: AGPL-3.0-or-later
"""A VM's whole history opened at once, for questions about all of its moments: leased as long as they are asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import tzinfo

from everywhen.formats.point import RecoveryPoint
from everywhen.repository.block_differences import BlockDifferences
from everywhen.repository.ledger import Vm
from everywhen.repository.reading import opened_points
from everywhen.repository.repository import Repository
from everywhen.services.addresses import Address
from everywhen.services.catalog import read_catalog
from everywhen.services.failures import NotFound
from everywhen.services.history.line import At, Line
from everywhen.services.history.sight import TurningFiles
from everywhen.services.history.traces import Traces
from everywhen.services.opening import open_moment
from everywhen.services.view.blocks import Blocks
from everywhen.services.view.moments import FAILURES


@dataclass(frozen=True, slots=True)
class OpenedHistory:
    """All moments of a VM up to `newest`."""

    vm: Vm
    line: Line
    newest: At
    traces: Traces
    files: TurningFiles


@contextmanager
def opened_history(
    repository: Repository, address: Address, *, zone: tzinfo, progress: Callable[[int, int], None]
) -> Iterator[OpenedHistory]:
    """All moments up to the one that `address` means (its path aside), while the body runs.

    `progress`: told how many of how many points were passed. Raises NotFound, WrongUsage, Damaged, StorageError.
    """
    catalog = read_catalog(repository)
    vm, moment = open_moment(repository, catalog, address, now_ns=repository.surroundings.clock(), zone=zone, exact=False)
    with ExitStack() as stack:
        blocks = Blocks(repository.fetcher)
        stack.callback(blocks.close)
        line = Line(repository, catalog.on_branch(vm, address.branch).points_of(vm), blocks)
        newest = _place(line, moment.point, moment.found.sequence)
        if newest is None:
            raise NotFound(
                f"{moment.point.point} is of another branch of {vm.name}, which has no history of its own.", on=vm.name
            )
        files = TurningFiles(FAILURES)
        stack.callback(files.close)
        with ThreadPoolExecutor(1) as pool:
            # The process that parses takes 0.3 s to begin, and reads nothing until it is asked: it begins beside the lease.
            begun = pool.submit(files.at, line.disks(line.at_point(newest.index)))
            stack.enter_context(opened_points(repository, f"history {vm.name}", _up_to(line, newest)))
            begun.result()
        count = newest.index + 1
        traces = Traces(line, BlockDifferences(repository.fetcher.read_many), blocks, lambda at: progress(count - at, count))
        yield OpenedHistory(vm, line, newest, traces, files)


def _place(line: Line, point: RecoveryPoint, sequence: int | None) -> At | None:
    """Where in the line a moment is; None: not in it. A backup that the journal goes beyond is where the journal was then."""
    for index, one in enumerate(line.points):
        if one.point == point.point:
            return At(index, sequence) if sequence is not None else line.at_point(index)
    earlier = [index for index, one in enumerate(line.points) if one.time_ns <= point.time_ns]
    return line.at_time(earlier[-1], point.time_ns) if earlier and point.journal is None else None


def _up_to(line: Line, newest: At) -> list[RecoveryPoint]:
    return line.points[: newest.index + 1]
