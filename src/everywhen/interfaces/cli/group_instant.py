# SPDX-License-Identifier: AGPL-3.0-or-later
"""The instant of a group that a user means, with what its captures on this host have not yet shipped."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from everywhen.interfaces.cli.context import Context
from everywhen.interfaces.cli.shipping import ship_newest
from everywhen.repository.repository import Repository
from everywhen.services.catalog import Catalog, read_catalog
from everywhen.services.groups import GroupMoment, find_instant, members, not_exact
from everywhen.services.times import Stretch
from everywhen.services.whens import parse_when


def instant_of(
    context: Context, repository: Repository, group: str, written: str, *, exact: bool
) -> tuple[Catalog, GroupMoment]:
    """`written`: WHEN. Raises Failure."""
    now = repository.surroundings.clock()
    when = parse_when(written, now_ns=now, zone=context.zone)
    names = [vm.name for vm in members(read_catalog(repository), group)]
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: ship_newest(context, name), names))
    catalog = read_catalog(repository)
    found = find_instant(repository, catalog, group, when, now_ns=now, zone=context.zone)
    if exact and isinstance(when.target, Stretch) and found.time_ns < when.target.earliest_ns:
        raise not_exact(group, when, found.time_ns, found.held_back)
    return catalog, found
