# SPDX-License-Identifier: AGPL-3.0-or-later
"""Names of folders for moments: `@2026-11-21_10.32.05Z` (design section 2). Nothing in them that some system forbids.

    @2026-11-21_10.32.05Z              a recovery point: the only one of that second
    @2026-11-21_10.32.05.417000000Z    one of several points of a second; or a moment between two points
    @2026-11-21_10.32.05.417000000Z~1  one of several writes of an instant: so many before the last
    @p-7fx9c2k0m3qz                    a point beside the history, to which no time leads; or one of several of one instant
    @p-7fx9c2k0m3qz~1                  so many writes before a point, where no time alone says it

Such a name always leads to the moment that it was made for. Whatever else may follow the @ of an address (`@-10m`,
`@latest`, `@2026-11-21_10.32`) leads to one of these, another one each time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from everywhen.formats.point import RecoveryPoint
from everywhen.services.ages import SECOND
from everywhen.services.opening import OpenedMoment
from everywhen.services.times import folder_time

LATEST = "@latest"


def listed_names(points: Sequence[RecoveryPoint]) -> dict[str, RecoveryPoint]:
    """The points of a VM's history by the names of their folders, in the same order."""
    instants = Counter(point.time_ns for point in points)
    seconds = Counter(point.time_ns // SECOND for point in points)

    def name(point: RecoveryPoint) -> str:
        if instants[point.time_ns] > 1:
            return f"@{point.point}"
        return f"@{folder_time(point.time_ns, exact=seconds[point.time_ns // SECOND] > 1)}"

    return {name(point): point for point in points}


def name_of_point(point: RecoveryPoint, listed: dict[str, RecoveryPoint]) -> str:
    """The name of a point's folder."""
    return next((name for name, one in listed.items() if one.point == point.point), f"@{point.point}")


def name_of_instant(opened: OpenedMoment) -> str:
    """The name of a moment between two points, if it is the last one of its instant."""
    return f"@{folder_time(opened.found.moment.time_ns, exact=True)}"
